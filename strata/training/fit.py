"""The one training loop. Tune and train both call it, and pass in the parts that differ between them."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from strata.device import launch
from strata.run import resume
from strata.run.door import BadInput
from strata.run.progress import Progress
from strata.sae.sae import SAE
from strata.training.trainer import Step, Trainer, learning_rate

STATE = "state.safetensors"


@dataclass(frozen=True)
class Judgement:
    """How an SAE does on the validation split. The checkpoint with the lowest ``score`` is the best."""

    fvu: float
    l0: float
    score: float


@dataclass
class Fitted:
    """The result of a training.

    ``untrained`` is the SAE that the training began with, with top-k: one of the controls. ``saes`` holds the
    checkpoints by name: ``best`` on the validation split, ``final``, and ``epoch-<n>``. ``best_l0``: latents of the
    best one that are active on a validation row, in the mean. ``history`` has one dict for each logged step.
    """

    untrained: SAE
    saes: dict[str, SAE] = field(default_factory=dict)
    best_step: int = 0
    best_score: float = math.inf
    best_l0: float = math.nan
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> SAE:
        return self.saes["best"]

    def keep(self, sae: SAE, judgement: Judgement, step: int, epoch: int, kept: bool) -> None:
        """Record this epoch's SAE as final, as best if it scores lower, and as a checkpoint of its own if ``kept``."""
        self.saes["final"] = sae
        if judgement.score < self.best_score:
            self.saes["best"], self.best_step = sae, step
            self.best_score, self.best_l0 = judgement.score, judgement.l0
        if kept:
            self.saes[f"epoch-{epoch}"] = sae


def fit(
    batches: Callable[[int], Iterator[Tensor]],
    trainer: Trainer,
    judge: Callable[[SAE, float], Judgement],
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    work: Path | None = None,
    save_every: float = 60.0,
) -> Fitted:
    """Train to the end. If ``work`` holds the state of an unfinished training, go on from there.

    ``batches(step)`` gives the batches from that step on, (row, width) float32 on the training scale.
    ``judge`` is called after each epoch with the folded SAE and the share of latents that were silent in that epoch.
    It returns the validation score. ``watch`` sees every logged step, and cannot change anything.
    ``save_every`` is the number of seconds between two saved states. A killed training loses no more than the work
    since the last state, and its result is the same to the bit.

    If there are several processes, all of them go on from the first one's state. Only the first process judges,
    watches and saves, and only it returns the result. The others return an empty one.

    Raises BadInput when training diverges. The last state then stays in ``work``.
    """
    knobs, steps = trainer.knobs, trainer.steps
    epoch_steps = steps // knobs.epochs
    leads = launch.rank() == 0  # only this process judges, watches and saves

    # The first process decides for all whether there is a state to go on from.
    begun = launch.told("begun" if work and resume.whole(work / STATE) else "")
    fitted = load(work, trainer) if work and begun else Fitted(trainer.untrained)

    remaining_batches = batches(trainer.done)
    saved_at = time.monotonic()
    with Progress("train", "steps", steps, trainer.done) as progress:
        while trainer.done < steps:
            step = trainer.advance(next(remaining_batches))
            if not leads:
                continue

            # Log the first step, every log_every-th after it, and the last step of each epoch.
            number = trainer.done
            epoch_ends = number % epoch_steps == 0
            if (number - 1) % knobs.log_every == 0 or epoch_ends:
                values = _logged(trainer, step)
                if epoch_ends:
                    values |= _end_epoch(trainer, judge, fitted, epoch=number // epoch_steps)
                fitted.history.append({"step": number, "tokens": trainer.tokens, **values})
                watch(number, values)
                progress.show(fvu=f"{step.fvu:.4f}", l0=f"{step.active:.1f}")

            # Save the state, so that a kill loses little.
            if work and (time.monotonic() - saved_at >= save_every or number == steps):
                save(work, trainer, fitted)
                saved_at = time.monotonic()
            progress.update()
    return fitted


def _logged(trainer: Trainer, step: Step) -> dict[str, float]:
    """Return what the history says of the step that ``trainer`` has just taken."""
    knobs = trainer.knobs
    return {
        "lr": learning_rate(trainer.done - 1, trainer.steps, knobs),
        "loss": step.loss,
        "mse": step.fvu * trainer.scale.variance,
        "fvu": step.fvu,
        "l0": step.active,
        "dead": step.dead / knobs.latents,
    }


def _end_epoch(
    trainer: Trainer, judge: Callable[[SAE, float], Judgement], fitted: Fitted, epoch: int
) -> dict[str, float]:
    """Judge the SAE at the end of an epoch, keep it in ``fitted``, and return what the history says of it.

    ``epoch``: how many epochs are done.
    """
    keep_every = trainer.knobs.keep_every
    sae, dead = trainer.folded(), trainer.asleep()
    judgement = judge(sae, dead)
    if not math.isfinite(judgement.score):
        raise BadInput(
            f"training diverged in epoch {epoch}: the error on the validation rows is {judgement.fvu}; lower train.lr "
            f"({trainer.knobs.lr})"
        )

    # The last epoch's SAE is `final` already.
    kept = bool(keep_every) and epoch % (keep_every or 1) == 0 and trainer.done < trainer.steps
    fitted.keep(sae, judgement, trainer.done, epoch, kept)
    return {
        "validation_fvu": judgement.fvu,
        "validation_l0": judgement.l0,
        "validation_dead": dead,
        "score": judgement.score,
    }


def save(work: Path, trainer: Trainer, fitted: Fitted) -> None:
    """Write the state of a training to ``work`` as one sealed file.

    Two names can stand for one checkpoint: the last SAE is often the best one too. It is written once.
    """
    tensors = trainer.state()
    written: dict[int, str] = {}  # id of an SAE -> the name under which its tensors are written
    same: dict[str, str] = {}  # name of a checkpoint -> that name
    for name, sae in fitted.saes.items():
        same[name] = written.setdefault(id(sae), name)
        if same[name] == name:
            tensors |= {f"sae.{name}.{part}": t for part, t in sae.tensors().items()}

    facts = {
        "same": same,
        "settings": fitted.best.settings() if fitted.saes else {},
        "best_step": fitted.best_step,
        "best_score": fitted.best_score,
        "best_l0": fitted.best_l0,
        "history": fitted.history,
    }
    tensors["facts"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    resume.keep_tensors(work / STATE, {name: t.cpu() for name, t in tensors.items()})


def load(work: Path, trainer: Trainer) -> Fitted:
    """Restore ``trainer`` from the state in ``work``, and return the checkpoints and history up to then."""
    tensors = load_file(work / STATE, device=str(trainer.device))
    facts = json.loads(tensors.pop("facts").cpu().numpy().tobytes())
    trainer.restore(tensors)

    # All checkpoints share their settings; each has tensors of its own, unless it is another one's.
    nothing = torch.empty(0)
    template = SAE(nothing, nothing, nothing, nothing, **facts["settings"])
    saes: dict[str, SAE] = {}
    for name, source in facts["same"].items():
        prefix = f"sae.{source}."
        parts = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        saes[name] = saes[source] if source in saes else replace(template, **parts)
    best = {name: facts[name] for name in ("best_step", "best_score", "best_l0")}
    return Fitted(trainer.untrained, saes, history=facts["history"], **best)
