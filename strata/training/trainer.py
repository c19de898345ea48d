"""One training step, and all the state that the next step depends on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from strata.device import launch
from strata.run.door import BadInput
from strata.sae.sae import SAE
from strata.training.autoencoder import Autoencoder, Scale, fold
from strata.training.knobs import Train
from strata.training.rules.base import Pass, Rule
from strata.training.rules.topk import TopK
from strata.training.update import AdamW, update

DIVERGED = 100.0  # fvu of a batch from which on training has failed; predicting the mean gives 1


@dataclass(frozen=True)
class Step:
    """What a step saw before it changed anything.

    ``loss`` and ``fvu`` of the batch; ``active``, the mean number of active latents a row; ``dead``, the number of
    dead latents.
    """

    loss: float
    fvu: float
    active: float
    dead: int


def learning_rate(step: int, steps: int, knobs: Train) -> float:
    """Return the learning rate of ``step``, which counts from 0, in a training of ``steps``.

    It rises linearly during the warm-up, stays at ``lr``, and falls to zero by a cosine or a line from ``decay_from``.
    """
    warmup_end, decay_start = knobs.warmup * steps, knobs.decay_from * steps
    if step < warmup_end:
        return knobs.lr * (step + 1) / (warmup_end + 1)
    if step < decay_start:
        return knobs.lr
    done = (step - decay_start) / max(steps - decay_start, 1)  # share of the decay
    return knobs.lr * ((1 + math.cos(math.pi * done)) / 2 if knobs.decay == "cosine" else 1 - done)


class Trainer:
    """Model, rule, optimiser and counters. ``done`` counts the steps taken, ``tokens`` the rows seen.

    The model works on the training scale y = s (x − μ), which ``scale`` holds; :func:`fold` gives an SAE on raw x.
    ``untrained`` is the SAE as it is before the first step, with top-k.

    Random numbers of a step depend on ``seed`` and the step's number alone, so there is no generator to keep.

    A batch of several micro-batches is shared among the stage's processes. For the rule, AuxK and the generator each
    micro-batch is a batch of its own. Gradients and buffers of all micro-batches are summed in the micro-batches'
    order, so that every process takes the same step, and the same step as one process alone would take.
    Raises BadInput when the processes cannot share the micro-batches equally.
    """

    def __init__(
        self, model: Autoencoder, rule: Rule, scale: Scale, knobs: Train, steps_per_epoch: int, seed: int
    ) -> None:
        self.model, self.rule, self.scale, self.knobs, self.seed = model, rule, scale, knobs, seed
        self.steps, self.done, self.tokens = steps_per_epoch * knobs.epochs, 0, 0
        self.epoch_tokens = steps_per_epoch * knobs.batch_size
        self.mine = launch.share(knobs.micro_batches, "train.micro_batches")  # numbers of this process's micro-batches
        self.device = model.decoder.device
        self.untrained = fold(model, TopK(knobs.k), scale)  # now, because the first step changes the model
        self.silent = torch.zeros(knobs.latents, dtype=torch.long, device=self.device)  # (latent,) tokens since active
        self.optimizer = AdamW(self._parameters(), knobs.beta1, knobs.beta2, knobs.weight_decay)

    def generator(self, part: int = 0) -> torch.Generator:
        """Return the random generator of this step, for the micro-batch ``part``."""
        # The factors keep seeds apart in their lowest 32 bits, which are all that the CPU's generator uses.
        seed = self.seed * 1_000_003 + self.done + part * 0x9E3779B1
        return torch.Generator(self.device).manual_seed(seed)

    def advance(self, y: Tensor) -> Step:
        """Take one step on ``y``, (row, width) float32 on the training scale.

        loss = ‖y − ŷ‖² / (rows · width · variance) + the rule's penalty + ``auxk`` × AuxK on the dead latents. Where a
        rule has nested reconstructions ŷ, the first term is the mean over them.
        Raises BadInput, and takes no step, when the loss is not finite or far above that of predicting the mean.
        """
        knobs, model, generator = self.knobs, self.model, self.generator()
        if self.done == 0:  # the first batch says where to begin
            model.start(y, knobs.k, generator)
            self.rule.start(model, y)
        self.optimizer.lr = learning_rate(self.done, self.steps, knobs)
        self.rule.schedule(self.done / self.steps)

        dead = self._dead()
        gradients = self._gradients if knobs.micro_batches == 1 else self._summed_gradients
        step, fired, run = gradients(y, dead, generator)  # fired: numbers or a (latent,) mask, which index the same
        self._check(step)

        update(model, self.optimizer, knobs.clip)

        # Note which latents fired, and help those that have not for long.
        self.silent += knobs.batch_size  # also where outliers were left out of the batch, so that an epoch counts whole
        self.silent[fired] = 0
        if knobs.wake and model.b_enc.requires_grad:
            model.wake(self._dead(), knobs.wake)

        self.done += 1
        self.tokens += len(y)

        # Not after the last step: nothing could be learnt from it.
        if knobs.resample_every and self.done < self.steps:
            steps_between = knobs.resample_every * self.steps // knobs.epochs
            if self.done % steps_between == 0:
                self._resample(run)
        return step

    def _dead(self) -> Tensor:
        """Return the numbers of the latents that count as dead: silent for more than ``dead_after`` epochs."""
        return (self.silent > self.knobs.dead_after * self.epoch_tokens).nonzero().flatten()

    def _gradients(
        self, y: Tensor, dead: Tensor, generator: torch.Generator, share: float = 1.0
    ) -> tuple[Step, Tensor, Pass]:
        """Set the parameters' gradients to those of ``share`` × the loss on ``y``.

        Returns what the step saw, the numbers of the latents that were active (one repeats for each row where it was),
        and the forward pass.
        """
        knobs, model = self.knobs, self.model
        unit = y.numel() * self.scale.variance  # turns a squared error into an fvu

        run = model(y, self.rule, generator)
        loss = run.error / unit + self.rule.penalty(model, run, unit)
        if knobs.auxk and len(dead):
            loss = loss + knobs.auxk * model.auxk(y, model.unexplained(run), dead, knobs.auxk_latents)

        active = run.codes.detach() > 0  # (entries,)
        # The fvu is that of the whole reconstruction; run.error may be a mean over nested ones.
        step = Step(loss.item(), float(run.residual.norm()) ** 2 / unit, float(active.sum()) / len(y), len(dead))

        model.zero_grad()
        self.rule.zero_grad()
        (loss * share).backward()
        return step, run.pattern.latents[active], run

    def _summed_gradients(self, y: Tensor, dead: Tensor, generator: torch.Generator) -> tuple[Step, Tensor, Pass]:
        """Do as :meth:`_gradients` over the micro-batches of all processes.

        Each micro-batch begins with the rule's buffers as they were before the step. Afterwards the buffers hold the
        mean of what the micro-batches left there. The latents that fired in any micro-batch are returned as a mask,
        (latent,) bool. The pass returned is that of this process's first micro-batch.
        """
        parts = y.tensor_split(self.knobs.micro_batches)
        buffers_before = [buffer.clone() for buffer in self.rule.buffers()]
        passes: list[Pass] = []

        def vectors() -> Iterator[Tensor]:
            for number in self.mine:
                for buffer, value in zip(self.rule.buffers(), buffers_before, strict=True):
                    buffer.copy_(value)
                part, share = parts[number], len(parts[number]) / len(y)
                # Micro-batch 0 goes on with the step's generator: in the first step, model.start has drawn from it.
                random = self.generator(number) if number else generator
                step, fired, run = self._gradients(part, dead, random, share)
                passes.extend([run] if not passes else [])
                yield self._packed(step, fired, share)

        step, fired = self._unpacked(launch.sum_in_order(vectors()), len(dead))
        return step, fired, passes[0]

    def _packed(self, step: Step, fired: Tensor, share: float) -> Tensor:
        """Pack all that a micro-batch leaves into one vector, so that one sum over the processes is enough.

        In this order: gradients, ``share`` × the rule's buffers, ``share`` × (loss, fvu, active), and for each latent
        1 if it fired, else 0. Gradients are of ``share`` × the loss already.
        """
        marks = torch.zeros(len(self.silent), device=self.device)
        marks[fired] = 1
        seen = marks.new_tensor([step.loss, step.fvu, step.active])
        # Every trained parameter has a gradient after backward, which _unpacked relies on; the test is for the types.
        gradients = [p.grad.flatten() for p in self._parameters() if p.grad is not None]
        return torch.cat([*gradients, *(b.flatten() * share for b in self.rule.buffers()), seen * share, marks])

    def _unpacked(self, vector: Tensor, dead: int) -> tuple[Step, Tensor]:
        """Unpack the sum of the vectors of :meth:`_packed`: put gradients and buffers where they belong.

        Returns what the step saw, and which latents fired, (latent,) bool.
        """
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
        """List what is trained: the parameters of model and rule, but not what is frozen."""
        return [p for part in (self.model, self.rule) for p in part.parameters() if p.requires_grad]

    def _check(self, step: Step) -> None:
        """Raise BadInput if ``step`` shows that training has diverged."""
        if math.isfinite(step.loss) and step.fvu < DIVERGED:
            return
        symptom = (
            f"the loss is {step.loss}" if not math.isfinite(step.loss) else f"the error is {step.fvu:.0f} × variance"
        )
        cure = f"lower train.lr ({self.knobs.lr}) or raise train.warmup ({self.knobs.warmup})"
        raise BadInput(f"training diverged at step {self.done}: {symptom}; {cure}")

    def _resample(self, run: Pass) -> None:
        """Begin anew with the latents that were silent for an epoch: new directions, no moments.

        ``run``: the pass of the step just taken. The limit is one epoch, whatever ``dead_after`` says.
        """
        dead = (self.silent >= self.epoch_tokens).nonzero().flatten()
        if not len(dead):
            return

        # The first process has the pass of the first micro-batch, however many processes there are.
        changed = (self.model.encoder, self.model.decoder, self.model.b_enc)
        if launch.rank() == 0:
            # done counts the step already, so the next step draws the same random numbers, for another purpose.
            self.model.resample(run, dead, self.generator())
        # model.length holds ‖v‖, where a decoder row is v/‖v‖ (update.py). It changes, too, but the optimiser has no
        # moments of it.
        launch.broadcast(*(parameter.detach() for parameter in changed), self.model.length)

        for parameter in changed:
            exp_avg, exp_avg_sq, _ = self.optimizer.moments(parameter)
            exp_avg[dead] = exp_avg_sq[dead] = 0
        self.silent[dead] = 0

    def folded(self) -> SAE:
        """Return the SAE as it stands now, on raw activations."""
        return fold(self.model, self.rule, self.scale)

    def asleep(self) -> float:
        """Return the share of latents that were silent for the last epoch's tokens."""
        return float((self.silent >= self.epoch_tokens).float().mean())

    def state(self) -> dict[str, Tensor]:
        """Return everything that :meth:`restore` needs, as tensors by name.

        Most are the trainer's own tensors, not copies: save them before the next step.
        """
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"rule.{name}": t for name, t in self.rule.state_dict().items()}
        tensors |= {f"optimizer.{name}": t for name, t in self.optimizer.state().items()}
        return {**tensors, "silent": self.silent, "counts": torch.tensor([self.done, self.tokens])}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from the state ``tensors``, which :meth:`state` returned."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.rule.load_state_dict(part("rule."))
        self.optimizer.restore(part("optimizer."))
        self.silent = tensors["silent"].to(self.device)
        self.done, self.tokens = tensors["counts"].tolist()
