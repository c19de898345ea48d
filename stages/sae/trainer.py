"""One step of training, and all the state that the next step depends on."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from stages.door import BadInput
from stages.sae.autoencoder import Autoencoder, Scale, fold
from stages.sae.knobs import Train
from stages.sae.rules.base import Pass, Rule
from stages.sae.sae import SAE

DIVERGED = 100.0  # an error of so many times the variance: predicting the mean gives 1


@dataclass(frozen=True)
class Step:
    """What a step saw, before it changed anything. ``fvu`` is the batch's, ``active`` the mean number of latents."""

    loss: float
    fvu: float
    active: float
    dead: int


def learning_rate(step: int, steps: int, knobs: Train) -> float:
    """Linear warm-up, a plateau, then cosine or linear decay to zero from ``decay_from`` on."""
    warmup, decay = knobs.warmup * steps, knobs.decay_from * steps
    if step < warmup:
        return knobs.lr * (step + 1) / (warmup + 1)
    if step < decay:
        return knobs.lr
    done = (step - decay) / max(steps - decay, 1)
    return knobs.lr * ((1 + math.cos(math.pi * done)) / 2 if knobs.decay == "cosine" else 1 - done)


class Trainer:
    """Model, rule, optimiser and counters; ``done`` steps lie behind.

    What is drawn at a step depends on ``seed`` and the step's number alone, so there is no generator to keep.
    """

    def __init__(
        self, model: Autoencoder, rule: Rule, scale: Scale, knobs: Train, steps_per_epoch: int, seed: int
    ) -> None:
        self.model, self.rule, self.scale, self.knobs, self.seed = model, rule, scale, knobs, seed
        self.steps, self.done, self.tokens = steps_per_epoch * knobs.epochs, 0, 0
        self.epoch_tokens = steps_per_epoch * knobs.batch_size
        self.device = model.decoder.device
        self.silent = torch.zeros(knobs.latents, dtype=torch.long, device=self.device)  # tokens since last active
        self.optimizer = torch.optim.AdamW(
            [*model.parameters(), *rule.parameters()],
            betas=(knobs.beta1, knobs.beta2),
            weight_decay=knobs.weight_decay,
            eps=1e-8,
            fused=True,
        )

    def generator(self) -> torch.Generator:
        """This step's own."""
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.done)

    def advance(self, y: Tensor) -> Step:
        """One step on ``y``, (row, width) float32 on the training scale.

        loss = ‖y − ŷ‖² / (rows · width · variance) + the rule's penalty + ``auxk`` × AuxK on the dead latents.
        Raises BadInput, and takes no step, when the loss is not finite or far above that of predicting the mean.
        """
        knobs, model, generator = self.knobs, self.model, self.generator()
        if self.done == 0:
            model.start(y, knobs.k, generator)
            self.rule.start(model, y)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.done, self.steps, knobs)
        self.rule.schedule(self.done / self.steps)

        unit = y.numel() * self.scale.variance
        run = model(y, self.rule, generator)
        errors = [mse_loss(output, y, reduction="sum") / unit for output in run.outputs]
        loss = torch.stack(errors).mean() + self.rule.penalty(model, run, unit)
        dead = (self.silent > knobs.dead_after * self.epoch_tokens).nonzero().flatten()
        if knobs.auxk and len(dead):
            loss = loss + knobs.auxk * model.auxk(y, run.residual.detach(), dead, knobs.auxk_latents)
        active = run.codes.detach() > 0
        step = Step(loss.item(), errors[-1].item(), float(active.sum()) / len(y), len(dead))
        self._check(step)

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        model.project_decoder_gradient()
        torch.nn.utils.clip_grad_norm_(model.parameters(), knobs.clip)
        self.optimizer.step()
        model.normalise_decoder()

        self.silent += len(y)
        self.silent[run.pattern.latents[active]] = 0
        self.done += 1
        self.tokens += len(y)
        if (
            knobs.resample_every
            and self.done % (knobs.resample_every * self.steps // knobs.epochs) == 0 < self.steps - self.done
        ):
            self._resample(run)
        return step

    def _check(self, step: Step) -> None:
        if math.isfinite(step.loss) and step.fvu < DIVERGED:
            return
        what = f"the loss is {step.loss}" if not math.isfinite(step.loss) else f"the error is {step.fvu:.0f} × variance"
        raise BadInput(f"training diverged at step {self.done}: {what}; lower train.lr ({self.knobs.lr})")

    def _resample(self, run: Pass) -> None:
        dead = (self.silent > self.epoch_tokens).nonzero().flatten()
        if not len(dead):
            return
        self.model.resample(run, dead, self.generator())
        for parameter in (self.model.encoder, self.model.decoder, self.model.b_enc):
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][moment][dead] = 0
        self.silent[dead] = 0

    def folded(self) -> SAE:
        """The SAE on raw activations as it stands."""
        return fold(self.model, self.rule, self.scale)

    def asleep(self) -> float:
        """Share of the latents that were silent for the last epoch's tokens."""
        return float((self.silent > self.epoch_tokens).float().mean())

    def state(self) -> dict[str, Tensor]:
        """Everything that :meth:`restore` needs, as tensors."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"rule.{name}": t for name, t in self.rule.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        return {**tensors, "silent": self.silent, "counts": torch.tensor([self.done, self.tokens])}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from where :meth:`state` was taken."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.rule.load_state_dict(part("rule."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer.").items():
            number, _, moment = name.partition(".")
            moments.setdefault(int(number), {})[moment] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.silent = tensors["silent"].to(self.device)
        self.done, self.tokens = tensors["counts"].tolist()
