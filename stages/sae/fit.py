"""The one training loop. Tune and train call it; what differs between them is passed in."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from stages.door import BadInput
from stages.params import Section
from stages.sae.autoencoder import Autoencoder, Scale, fold
from stages.sae.rules import BatchTopK, JumpReLU, Rule, RuleName, TopK
from stages.sae.sae import SAE


class Train(Section):
    """How one SAE is trained. Units: a step is a batch; shares are of the whole run. See params.yaml."""

    rule: RuleName
    latents: int = Field(gt=0)
    k: int = Field(gt=0)
    bandwidth: float = Field(gt=0)
    l0_coefficient: float = Field(ge=0)
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    window_rows: int = Field(gt=0)
    skip_outliers: bool
    lr: float = Field(gt=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    warmup: float = Field(ge=0, le=1)
    decay: Literal["cosine", "linear"]
    decay_from: float = Field(ge=0, le=1)
    clip: float = Field(gt=0)
    auxk: float = Field(ge=0)
    auxk_latents: int = Field(gt=0)
    dead_after: float = Field(gt=0)
    log_every: int = Field(gt=0)
    validation_rows: int = Field(gt=0)
    keep_every: int | None = Field(gt=0)
    ce_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "Train":
        if self.k > self.latents:
            raise ValueError(f"k is {self.k}, more than the {self.latents} latents of the dictionary; lower k")
        return self


@dataclass(frozen=True)
class Judgement:
    """What the validation split says of an SAE; the lowest ``score`` is the best checkpoint."""

    fvu: float
    l0: float
    score: float


@dataclass
class Fitted:
    """The best checkpoint by validation, the last one, those kept between, and the history (one dict a logged step)."""

    best: SAE
    best_step: int
    best_score: float
    final: SAE
    kept: dict[int, SAE]
    history: list[dict[str, Any]]


def make_rule(knobs: Train) -> Rule:
    """The sparsity rule by name."""
    if knobs.rule == "jumprelu":
        return JumpReLU(knobs.k, knobs.latents, knobs.bandwidth, knobs.l0_coefficient)
    return (TopK if knobs.rule == "topk" else BatchTopK)(knobs.k)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 for choosing latents where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def learning_rate(step: int, steps: int, knobs: Train) -> float:
    """Linear warm-up, a plateau, then cosine or linear decay to zero from ``decay_from`` on."""
    warmup, decay = knobs.warmup * steps, knobs.decay_from * steps
    if step < warmup:
        return knobs.lr * (step + 1) / (warmup + 1)
    if step < decay:
        return knobs.lr
    done = (step - decay) / max(steps - decay, 1)
    return knobs.lr * ((1 + math.cos(math.pi * done)) / 2 if knobs.decay == "cosine" else 1 - done)


def fit(
    batches: Iterator[Tensor],
    steps_per_epoch: int,
    model: Autoencoder,
    rule: Rule,
    scale: Scale,
    knobs: Train,
    judge: Callable[[SAE, float], Judgement],
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    title: str = "train",
) -> Fitted:
    """Train ``model`` on ``batches`` of the training scale, (row, width) float32, ``steps_per_epoch`` to an epoch.

    loss = ‖y − ŷ‖² / (rows · width · variance) + the rule's penalty + ``auxk`` × AuxK on the dead latents. After each
    epoch ``judge`` gets the folded SAE and the share of latents silent in that epoch, and gives its validation score.
    ``watch`` sees every logged step; it cannot change anything.

    Raises BadInput when the loss stops being finite, naming the step.
    """
    steps = steps_per_epoch * knobs.epochs
    optimizer = torch.optim.Adam(
        [*model.parameters(), *rule.parameters()], betas=(knobs.beta1, knobs.beta2), eps=1e-8, fused=True
    )
    dtype = fast_dtype(model.decoder.device)
    silent = torch.zeros(knobs.latents, dtype=torch.long)  # tokens since each latent was last active
    dead_after = knobs.dead_after * steps_per_epoch * knobs.batch_size
    fitted = Fitted(best=None, best_step=0, best_score=math.inf, final=None, kept={}, history=[])  # pyright: ignore[reportArgumentType]
    tokens = 0
    with tqdm(total=steps, desc=title, unit=" steps", disable=None) as bar:
        for step in range(steps):
            y = next(batches)
            if step == 0:
                model.start(y, knobs.k)
                rule.start(model.fast_preactivations(y, torch.float32))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, knobs)
            reconstruction, codes, h, pattern = model(y, rule, dtype)
            residual = y - reconstruction
            error = residual.square().sum() / (y.numel() * scale.variance)
            loss = error + rule.penalty(h, pattern)
            dead = (silent > dead_after).nonzero().flatten()
            if knobs.auxk and len(dead):
                loss = loss + knobs.auxk * model.auxk(y, residual.detach(), dead, knobs.auxk_latents)
            if not math.isfinite(loss.item()):
                raise BadInput(f"the loss of {title} is {loss.item()} at step {step}; lower train.lr ({knobs.lr})")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            model.project_decoder_gradient()
            torch.nn.utils.clip_grad_norm_(model.parameters(), knobs.clip)
            optimizer.step()
            model.normalise_decoder()

            tokens += len(y)
            silent += len(y)
            active = codes.detach() > 0
            silent[pattern.latents[active]] = 0
            epoch_ends = (step + 1) % steps_per_epoch == 0
            if step % knobs.log_every == 0 or epoch_ends:
                values = {
                    "lr": learning_rate(step, steps, knobs),
                    "loss": loss.item(),
                    "mse": error.item() * scale.variance,
                    "fvu": error.item(),
                    "l0": float(active.sum()) / len(y),
                    "dead": len(dead) / knobs.latents,
                }
                if epoch_ends:
                    asleep = float((silent > steps_per_epoch * knobs.batch_size).float().mean())
                    sae = fold(model, rule, scale)
                    judged = judge(sae, asleep)
                    values |= {
                        "validation_fvu": judged.fvu,
                        "validation_l0": judged.l0,
                        "validation_dead": asleep,
                        "score": judged.score,
                    }
                    _keep(fitted, sae, judged, step + 1, (step + 1) // steps_per_epoch, knobs)
                fitted.history.append({"step": step + 1, "tokens": tokens, **values})
                watch(step + 1, values)
                bar.set_postfix(fvu=f"{values['fvu']:.4f}", l0=f"{values['l0']:.1f}", refresh=False)
            bar.update()
    return fitted


def _keep(fitted: Fitted, sae: SAE, judged: Judgement, step: int, epoch: int, knobs: Train) -> None:
    fitted.final = sae
    if judged.score < fitted.best_score:
        fitted.best, fitted.best_step, fitted.best_score = sae, step, judged.score
    if knobs.keep_every and epoch % knobs.keep_every == 0 and epoch < knobs.epochs:
        fitted.kept[epoch] = sae
