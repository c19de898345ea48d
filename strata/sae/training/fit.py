"""The one training loop. Tune and train call it; what differs between them is passed in."""

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
from tqdm import tqdm

from strata.device import launch
from strata.run import resume
from strata.sae.sae import SAE
from strata.sae.training.trainer import Trainer, learning_rate

STATE = "state.safetensors"


@dataclass(frozen=True)
class Judgement:
    """What the validation split says of an SAE; the lowest ``score`` is the best checkpoint."""

    fvu: float
    l0: float
    score: float


@dataclass
class Fitted:
    """Checkpoints: ``best`` by validation, ``final``, ``epoch-<n>``. ``history``: one dict a logged step."""

    saes: dict[str, SAE] = field(default_factory=dict)
    best_step: int = 0
    best_score: float = math.inf
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> SAE:
        return self.saes["best"]

    def keep(self, sae: SAE, score: float, step: int, epoch: int, kept: bool) -> None:
        """Take an epoch's SAE for what it is."""
        self.saes["final"] = sae
        if score < self.best_score:
            self.saes["best"], self.best_step, self.best_score = sae, step, score
        if kept:
            self.saes[f"epoch-{epoch}"] = sae


def fit(
    batches: Callable[[int], Iterator[Tensor]],
    trainer: Trainer,
    judge: Callable[[SAE, float], Judgement],
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    title: str = "train",
    work: Path | None = None,
    save_every: float = 60.0,
) -> Fitted:
    """Train to the end, from where the state in ``work`` stands, if there is one.

    ``batches(step)`` gives the batches (row, width) float32 on the training scale from that step on. After each epoch
    ``judge`` gets the folded SAE and the share of latents silent in that epoch, and gives its validation score.
    ``watch`` sees every logged step; it cannot change anything. ``save_every``: seconds between states; a kill loses
    no more than the work since the last one, and the result is the same to the bit.

    Of several processes the first alone judges, watches and saves, and has the result; all of them go on from its
    state. The others return an empty one.

    Raises BadInput when training diverges; the last state stays in ``work``.
    """
    knobs, steps = trainer.knobs, trainer.steps
    epoch_steps = steps // knobs.epochs
    first = launch.rank() == 0
    begun = launch.told("begun" if work and resume.whole(work / STATE) else "")
    fitted = load(work, trainer) if work and begun else Fitted()

    rows = batches(trainer.done)
    saved = time.monotonic()
    with tqdm(total=steps, initial=trainer.done, desc=title, unit=" steps", disable=None if first else True) as bar:
        while trainer.done < steps:
            step = trainer.advance(next(rows))
            if not first:
                continue

            number = trainer.done
            epoch_ends = number % epoch_steps == 0
            if (number - 1) % knobs.log_every == 0 or epoch_ends:
                values = {
                    "lr": learning_rate(number - 1, steps, knobs),
                    "loss": step.loss,
                    "mse": step.fvu * trainer.scale.variance,
                    "fvu": step.fvu,
                    "l0": step.active,
                    "dead": step.dead / knobs.latents,
                }

                # An epoch's SAE may be the best one.
                if epoch_ends:
                    sae, asleep, epoch = trainer.folded(), trainer.asleep(), number // epoch_steps
                    judged = judge(sae, asleep)
                    values |= {
                        "validation_fvu": judged.fvu,
                        "validation_l0": judged.l0,
                        "validation_dead": asleep,
                        "score": judged.score,
                    }
                    kept = bool(knobs.keep_every) and epoch % (knobs.keep_every or 1) == 0 and number < steps
                    fitted.keep(sae, judged.score, number, epoch, kept)

                fitted.history.append({"step": number, "tokens": trainer.tokens, **values})
                watch(number, values)
                bar.set_postfix(fvu=f"{step.fvu:.4f}", l0=f"{step.active:.1f}", refresh=False)

            if work and (time.monotonic() - saved >= save_every or number == steps):
                save(work, trainer, fitted)
                saved = time.monotonic()
            bar.update()
    return fitted


def save(work: Path, trainer: Trainer, fitted: Fitted) -> None:
    """Keep the state as one sealed file; checkpoints that are the same are written once."""
    names: dict[int, str] = {}
    tensors, same = trainer.state(), {}
    for name, sae in fitted.saes.items():
        same[name] = names.setdefault(id(sae), name)
        if same[name] == name:
            tensors |= {f"sae.{name}.{part}": t for part, t in sae.tensors().items()}
    facts = {
        "same": same,
        "settings": fitted.best.settings() if fitted.saes else {},
        "best_step": fitted.best_step,
        "best_score": fitted.best_score,
        "history": fitted.history,
    }
    tensors["facts"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    resume.keep_tensors(work / STATE, {name: t.cpu() for name, t in tensors.items()})


def load(work: Path, trainer: Trainer) -> Fitted:
    """Put ``trainer`` where the state in ``work`` stands, and give what had been kept by then."""
    tensors = load_file(work / STATE, device=str(trainer.device))
    facts = json.loads(tensors.pop("facts").cpu().numpy().tobytes())
    trainer.restore(tensors)
    none = torch.empty(0)
    empty = SAE(none, none, none, none, **facts["settings"])
    saes: dict[str, SAE] = {}
    for name, source in facts["same"].items():
        prefix = f"sae.{source}."
        parts = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        saes[name] = saes[source] if source in saes else replace(empty, **parts)
    return Fitted(saes, facts["best_step"], facts["best_score"], facts["history"])
