"""Train one SAE on one layer's rows: what tune does often and briefly, and train once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strata import auto
from strata.device.machine import CPU, need_memory, put
from strata.measure import quality
from strata.measure.metrics import OUTLIER
from strata.rows.batches import Rows, Shuffled, blocks
from strata.rows.spread import spread
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.run.params import check
from strata.run.resume import main_root
from strata.sae import npz
from strata.sae.knobs import BY_BATCH, Given, Train
from strata.sae.rules.base import Rule
from strata.sae.rules.named import make_rule
from strata.sae.rules.topk import TopK
from strata.sae.sae import SAE, threshold_for
from strata.sae.size import training_bytes
from strata.sae.training.autoencoder import Autoencoder, Scale, fold
from strata.sae.training.fit import Fitted, Judgement, fit
from strata.sae.training.trainer import Trainer
from strata.verdict.targets import Targets, penalty


def knobs_of(
    train: dict[str, Any], tuned: dict[str, Any], override: dict[str, Any], layer: int, size: auto.Size
) -> Train:
    """The section ``train``, on top of it what it takes from tune, on top what ``by_layer`` says of one layer; then
    what auto is for rows of ``size``."""
    tops = [f"tune's {', '.join(tuned)}"] * bool(tuned) + [f"by_layer.{layer}"] * bool(override)
    where = " with ".join(["params.yaml: train", " and ".join(tops)][: 1 + bool(tops)])
    return check(auto.train({**train, **tuned, **override}, size), Train, where)


def scale_of(activations: Rows, device: torch.device = CPU, inliers: bool = False) -> Scale:
    """The training scale, for rows on ``device``: mean 0, and the factor of
    :class:`strata.rows.spread.Spread`; of all training rows, or of the ``inliers`` among them."""
    s, mean = activations.scale, activations.mean
    if inliers:
        largest, split = OUTLIER * activations.median_norm, activations.split("train")
        found = spread(lambda: (x[x.float().norm(dim=1) <= largest] for x in activations.blocks(*split)), "inliers")
        s, mean = found.scale, found.mean.float()
    variance = 1 - s**2 * float(mean.double().square().sum()) / activations.width
    return Scale(s, mean.to(device), variance if variance > 0 else 1.0)  # below 0: s is the scale of x − mean


def with_threshold(sae: SAE, per_row: float, blocks: Callable[[], Iterable[Tensor]]) -> SAE:
    """The same SAE with the one threshold that gives ``per_row`` active latents a row on ``blocks()``."""
    return replace(sae, k=None, threshold=torch.full_like(sae.b_enc, threshold_for(sae, blocks, per_row)))


def train(
    activations: Rows,
    knobs: Train,
    targets: Targets,
    seed: int,
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    work: Path | None = None,
    save_every: float = 60.0,
    device: torch.device = CPU,
) -> tuple[Fitted, SAE]:
    """Train on the training rows; the validation rows choose the checkpoint and batchtopk's threshold.

    ``work``: where the state of an unfinished training is looked for, and kept every ``save_every`` seconds. Returns
    the result and the untrained SAE that it started from, with top-k, both on ``device``.
    """
    quality.check_held_out(activations, "validation")
    first, end = activations.split("train")
    needed = training_bytes(knobs, activations.width, end - first)
    what = f"training {knobs.latents:,} latents of width {activations.width:,}"
    need_memory(needed, device, what, "lower train.latents or train.window_rows")

    scale = scale_of(activations, device, knobs.skip_outliers)
    shuffled = Shuffled(activations, *activations.split("train"), knobs.batch_size, knobs.window_rows, seed)
    random = torch.Generator().manual_seed(seed)
    model = Autoencoder(activations.width, knobs.latents, random, knobs.init, knobs.decoder_activation).to(device)
    if knobs.encoder is not None:
        model.take(*given(knobs.encoder, tuple(model.encoder.shape), scale), knobs.encoder.frozen)

    def validation(limit: int | None = None) -> Iterator[Tensor]:
        first, end = activations.split("validation")
        return blocks(activations, first, min(end, first + limit) if limit else end, device)

    def settled(sae: SAE, limit: int | None = None) -> SAE:
        return with_threshold(sae, knobs.k, partial(validation, limit)) if knobs.rule in BY_BATCH else sae

    def batches(step: int) -> Iterator[Tensor]:
        for rows in shuffled.endless(step):
            x = put(rows, device)
            if knobs.skip_outliers:
                inliers = x[x.float().norm(dim=1) <= OUTLIER * activations.median_norm]
                x = inliers if len(inliers) >= knobs.micro_batches else x  # a step needs rows
            yield scale.apply(x)

    @torch.inference_mode()
    def judge(sae: SAE, dead: float) -> Judgement:
        rows = knobs.validation_rows
        found = quality.reconstruction(
            settled(sae, rows).reconstruct, validation(rows), scale.factor, activations.median_norm
        )
        price = price_of(rule, sae, validation(rows), scale)
        cost = penalty(found["l0"], dead, targets) if price is None else price + penalty(None, dead, targets)
        return Judgement(found["fvu"], found["l0"], found["fvu"] + cost)

    untrained = fold(model, TopK(knobs.k), scale)
    rule = make_rule(knobs).to(device)
    trainer = Trainer(model, rule, scale, knobs, shuffled.steps_per_epoch(), seed)
    fitted = fit(batches, trainer, judge, watch, f"train {activations.layer}", work, save_every)
    once = {id(sae): sae for sae in fitted.saes.values()}  # the last one is often the best, too
    once = {number: settled(sae) for number, sae in once.items()}
    fitted.saes = {name: once[id(sae)] for name, sae in fitted.saes.items()}
    return fitted, untrained


def price_of(rule: Rule, sae: SAE, blocks: Iterable[Tensor], scale: Scale) -> float | None:
    """The mean over the rows of ``blocks``, raw activations, of what ``sae``'s codes cost by ``rule``; None where the
    rule has no price. See `Rule.price`."""
    total, rows = 0.0, 0
    for x in blocks:
        codes = sae.encode(x.float())
        price = rule.price(codes.values * scale.factor, codes.pattern, x.numel() * scale.variance)
        if price is None:
            return None
        total, rows = total + price * len(x), rows + len(x)
    return total / rows


def given(encoder: Given, shape: tuple[int, ...], scale: Scale) -> tuple[Tensor, Tensor]:
    """The rows and biases of a file's encoder on the training scale: x Wᵀ + b = (y Wᵀ + s (b + W μ)) / s."""
    path = next((path for path in (Path(encoder.file), main_root() / encoder.file) if path.is_file()), None)
    if path is None:
        raise BadInput(f"params.yaml: train.encoder names {encoder.file}, which is no file")
    if (found := sha256(path)) != encoder.sha256:
        raise BadInput(f"params.yaml: train.encoder.sha256 must be that of {encoder.file}, which is {found}")
    rows, bias = npz.encoder(path)
    if tuple(rows.shape) != shape:
        raise BadInput(
            f"{encoder.file} is of {rows.shape[0]} latents of width {rows.shape[1]}, but train.latents is {shape[0]} "
            f"and activations have {shape[1]} numbers"
        )
    rows, bias = rows.to(scale.mean.device), bias.to(scale.mean.device)
    return rows, (scale.factor * (bias.double() + rows.double() @ scale.mean.double())).float()
