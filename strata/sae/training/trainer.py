"""One step of training, and all the state that the next step depends on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from strata.device import launch
from strata.run.door import BadInput
from strata.sae.knobs import Train
from strata.sae.rules.base import Pass, Rule
from strata.sae.sae import SAE
from strata.sae.training.autoencoder import Autoencoder, Scale, fold
from strata.sae.training.update import AdamW, update

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

    A batch of several micro-batches is shared among the stage's processes. Each micro-batch is a batch of its own to
    the rule, AuxK and the generator; what they leave is summed in their order, so that every process takes the same
    step, and the same as one process alone. Raises BadInput when the processes cannot share them equally.
    """

    def __init__(
        self, model: Autoencoder, rule: Rule, scale: Scale, knobs: Train, steps_per_epoch: int, seed: int
    ) -> None:
        self.model, self.rule, self.scale, self.knobs, self.seed = model, rule, scale, knobs, seed
        self.steps, self.done, self.tokens = steps_per_epoch * knobs.epochs, 0, 0
        self.epoch_tokens = steps_per_epoch * knobs.batch_size
        self.mine = launch.share(knobs.micro_batches, "train.micro_batches")
        self.device = model.decoder.device
        self.silent = torch.zeros(knobs.latents, dtype=torch.long, device=self.device)  # tokens since last active
        self.optimizer = AdamW(self._parameters(), knobs.beta1, knobs.beta2, knobs.weight_decay)

    def generator(self, part: int = 0) -> torch.Generator:
        """This step's own, for one micro-batch."""
        seed = self.seed * 1_000_003 + self.done + part * 0x9E3779B1  # the CPU's looks at the lowest 32 bits alone
        return torch.Generator(self.device).manual_seed(seed)

    def advance(self, y: Tensor) -> Step:
        """One step on ``y``, (row, width) float32 on the training scale.

        loss = ‖y − ŷ‖² / (rows · width · variance) + the rule's penalty + ``auxk`` × AuxK on the dead latents.
        Raises BadInput, and takes no step, when the loss is not finite or far above that of predicting the mean.
        """
        knobs, model, generator = self.knobs, self.model, self.generator()
        if self.done == 0:
            model.start(y, knobs.k, generator)
            self.rule.start(model, y)
        self.optimizer.lr = learning_rate(self.done, self.steps, knobs)
        self.rule.schedule(self.done / self.steps)

        dead = self._dead()
        gradients = self._gradients if knobs.micro_batches == 1 else self._summed_gradients
        step, fired, run = gradients(y, dead, generator)
        self._check(step)

        update(model, self.optimizer, knobs.clip)

        self.silent += len(y)
        self.silent[fired] = 0
        if knobs.wake and not model.frozen:
            model.wake(self._dead(), knobs.wake)
        self.done += 1
        self.tokens += len(y)
        if (
            knobs.resample_every
            and self.done % (knobs.resample_every * self.steps // knobs.epochs) == 0 < self.steps - self.done
        ):
            self._resample(run)
        return step

    def _dead(self) -> Tensor:
        """An index of the latents that count as dead."""
        return (self.silent > self.knobs.dead_after * self.epoch_tokens).nonzero().flatten()

    def _gradients(
        self, y: Tensor, dead: Tensor, generator: torch.Generator, share: float = 1.0
    ) -> tuple[Step, Tensor, Pass]:
        """Leave the gradients of ``share`` × the loss on ``y`` with the parameters.

        Returns what was seen, an index of the latents that were active, and the forward pass.
        """
        knobs, model = self.knobs, self.model
        unit = y.numel() * self.scale.variance
        run = model(y, self.rule, generator)
        loss = run.error / unit + self.rule.penalty(model, run, unit)
        if knobs.auxk and len(dead):
            loss = loss + knobs.auxk * model.auxk(y, model.unexplained(run), dead, knobs.auxk_latents)
        active = run.codes.detach() > 0
        step = Step(loss.item(), float(run.residual.norm()) ** 2 / unit, float(active.sum()) / len(y), len(dead))
        model.zero_grad()
        self.rule.zero_grad()
        (loss * share).backward()
        return step, run.pattern.latents[active], run

    def _summed_gradients(self, y: Tensor, dead: Tensor, generator: torch.Generator) -> tuple[Step, Tensor, Pass]:
        """The same over the micro-batches of all processes; the pass is that of this process's first.

        Each begins with the rule's buffers as the step found them, and the mean of what they leave there stays.
        """
        parts = y.tensor_split(self.knobs.micro_batches)
        found = [buffer.clone() for buffer in self.rule.buffers()]
        passes: list[Pass] = []

        def vectors() -> Iterator[Tensor]:
            for number in self.mine:
                for buffer, value in zip(self.rule.buffers(), found, strict=True):
                    buffer.copy_(value)
                part, share = parts[number], len(parts[number]) / len(y)
                random = self.generator(number) if number else generator
                step, fired, run = self._gradients(part, dead, random, share)
                passes.extend([run] if not passes else [])
                yield self._packed(step, fired, share)

        step, fired = self._unpacked(launch.sum_in_order(vectors()), len(dead))
        return step, fired, passes[0]

    def _packed(self, step: Step, fired: Tensor, share: float) -> Tensor:
        """All that a micro-batch leaves in one vector: gradients, buffers, what was seen, a mark for who fired."""
        marks = torch.zeros(len(self.silent), device=self.device)
        marks[fired] = 1
        seen = marks.new_tensor([step.loss, step.fvu, step.active])
        gradients = [p.grad.flatten() for p in self._parameters() if p.grad is not None]
        return torch.cat([*gradients, *(b.flatten() * share for b in self.rule.buffers()), seen * share, marks])

    def _unpacked(self, vector: Tensor, dead: int) -> tuple[Step, Tensor]:
        """Put gradients and buffers from the sum of such vectors where they belong; what was seen, and who fired."""
        parameters, buffers = self._parameters(), list(self.rule.buffers())
        sizes = [tensor.numel() for tensor in (*parameters, *buffers)]
        *pieces, seen, marks = vector.split([*sizes, 3, len(self.silent)])
        for parameter, piece in zip(parameters, pieces[: len(parameters)], strict=True):
            parameter.grad = piece.view_as(parameter)
        for buffer, piece in zip(buffers, pieces[len(parameters) :], strict=True):
            buffer.copy_(piece.view_as(buffer))
        loss, fvu, active = seen.tolist()
        return Step(loss, fvu, active, dead), marks > 0

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for part in (self.model, self.rule) for p in part.parameters() if p.requires_grad]

    def _check(self, step: Step) -> None:
        if math.isfinite(step.loss) and step.fvu < DIVERGED:
            return
        what = f"the loss is {step.loss}" if not math.isfinite(step.loss) else f"the error is {step.fvu:.0f} × variance"
        cure = f"lower train.lr ({self.knobs.lr}) or raise train.warmup ({self.knobs.warmup})"
        raise BadInput(f"training diverged at step {self.done}: {what}; {cure}")

    def _resample(self, run: Pass) -> None:
        dead = (self.silent > self.epoch_tokens).nonzero().flatten()
        if not len(dead):
            return
        changed = (self.model.encoder, self.model.decoder, self.model.b_enc)
        if launch.rank() == 0:  # whose pass is that of the first micro-batch
            self.model.resample(run, dead, self.generator())
        launch.broadcast(*(parameter.detach() for parameter in changed), self.model.length)
        for parameter in changed:
            exp_avg, exp_avg_sq, _ = self.optimizer.moments(parameter)
            exp_avg[dead] = exp_avg_sq[dead] = 0
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
        tensors |= {f"optimizer.{name}": t for name, t in self.optimizer.state().items()}
        return {**tensors, "silent": self.silent, "counts": torch.tensor([self.done, self.tokens])}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from where :meth:`state` was taken."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.rule.load_state_dict(part("rule."))
        self.optimizer.restore(part("optimizer."))
        self.silent = tensors["silent"].to(self.device)
        self.done, self.tokens = tensors["counts"].tolist()
