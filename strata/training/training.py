"""Train one SAE on one layer's rows. Stage tune does this often and briefly, stage train once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from strata.device.machine import CPU, need_memory, put
from strata.formats import npz
from strata.measure import quality
from strata.measure.quality import OUTLIER
from strata.rows.batches import Rows, Shuffled, blocks, check_held_out, shortened
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.run.resume import places
from strata.sae.sae import SAE, threshold_for
from strata.training.autoencoder import Autoencoder, Scale
from strata.training.fit import Fitted, Judgement, fit
from strata.training.knobs import BY_BATCH, Given, Held, Train
from strata.training.named import make_rule
from strata.training.rules.base import Rule
from strata.training.trainer import Trainer
from strata.verdict.targets import Targets, penalty

SHORTENED = 2.0  # times the median norm: the length of longer rows in training, where outliers are shortened


def with_threshold(sae: SAE, per_row: float, blocks: Callable[[], Iterable[Tensor]]) -> SAE:
    """Return the same SAE with the one threshold that gives ``per_row`` active latents a row on ``blocks()``.

    ``blocks`` is called several times, and begins anew each time.
    """
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
    held: Held | None = None,
) -> Fitted:
    """Train on the training rows.

    The validation rows choose the checkpoint, and settle the threshold of batchtopk and matryoshka.

    ``work``: a folder for the state of an unfinished training. A state that lies there is continued, and a new one is
    written every ``save_every`` seconds. ``held``: what stays random, for a control; see `Autoencoder.hold`.

    Returns the result, with its SAEs on ``device``. Raises BadInput where the validation rows do not vary or memory
    does not suffice.
    """
    # Refuse what cannot work before any of the work is done.
    check_held_out(activations, "validation")
    first, end = activations.split("train")
    needed = knobs.training_bytes(activations.width, end - first)
    what = f"training {knobs.latents:,} latents of width {activations.width:,}"
    need_memory(needed, device, what, "lower train.latents or train.window_rows")

    scale = Scale.of(activations, device, inliers=knobs.outliers == "skip")
    shuffled = Shuffled(activations, first, end, knobs.batch_size, knobs.window_rows, seed)
    random = torch.Generator().manual_seed(seed)
    model = Autoencoder(activations.width, knobs.latents, random, knobs.init, knobs.decoder_activation).to(device)
    if knobs.encoder is not None:
        encoder, bias = given(knobs.encoder, tuple(model.encoder.shape), scale)
        model.take(encoder, bias, knobs.encoder.frozen)
    if held is not None:
        model.hold(held)

    def validation(limit: int | None = None) -> Iterator[Tensor]:
        """Blocks of the first ``limit`` validation rows, or of all."""
        first, end = activations.split("validation")
        return blocks(activations, first, min(end, first + limit) if limit else end, device)

    def settled(sae: SAE, limit: int | None = None) -> SAE:
        """``sae`` with the threshold that its rule takes from the first ``limit`` validation rows, if it takes one."""
        return with_threshold(sae, knobs.k, partial(validation, limit)) if knobs.rule in BY_BATCH else sae

    def batches(step: int) -> Iterator[Tensor]:
        """Training batches on ``device`` and on the training scale, from ``step`` on."""
        for rows in shuffled.endless(step):
            x = put(rows, device)
            if knobs.outliers == "shorten":
                x = shortened(x, SHORTENED * activations.median_norm)
            elif knobs.outliers == "skip":
                inliers = x[x.float().norm(dim=1) <= OUTLIER * activations.median_norm]
                x = inliers if len(inliers) >= knobs.micro_batches else x  # a micro-batch needs at least one row
            yield scale.apply(x)

    @torch.inference_mode()
    def judge(sae: SAE, dead: float) -> Judgement:
        """Score an epoch's SAE: its fvu, plus what it pays for l0 (by its rule or the targets) and for dead latents.

        ``dead``: their share, 0 to 1.
        """
        rows = knobs.validation_rows
        reconstruct = settled(sae, rows).reconstruct
        measured = quality.reconstruction(reconstruct, validation(rows), scale.factor, activations.median_norm)
        if measured["fvu"] is None:
            raise BadInput(f"the first {rows} validation rows are all the same; raise train.validation_rows")

        # Where the rule has a price, it stands in for the target of l0. Then the targets add what dead latents cost.
        price = price_of(rule, sae, validation(rows), scale)
        cost = penalty(measured["l0"], dead, targets) if price is None else price + penalty(None, dead, targets)
        return Judgement(measured["fvu"], measured["l0"], measured["fvu"] + cost)

    rule = make_rule(knobs).to(device)
    trainer = Trainer(model, rule, scale, knobs, shuffled.steps_per_epoch(), seed)
    fitted = fit(batches, trainer, judge, watch, work, save_every)

    # Settle each SAE once: the last one is often the best one, too.
    distinct = {id(sae): sae for sae in fitted.saes.values()}
    settled_saes = {number: settled(sae) for number, sae in distinct.items()}
    fitted.saes = {name: settled_saes[id(sae)] for name, sae in fitted.saes.items()}
    return fitted


def price_of(rule: Rule, sae: SAE, blocks: Iterable[Tensor], scale: Scale) -> float | None:
    """Return what ``sae``'s codes cost by ``rule``, as a mean over the rows of ``blocks``, which are raw activations.

    None where the rule has no price; see `Rule.price`.
    """
    total, rows = 0.0, 0
    for x in blocks:
        codes = sae.encode(x.float())
        # Codes and variance are on the training scale. `price` divides by the unit, rows × width × variance: a price is
        # a share of the variance, as fvu is.
        price = rule.price(codes.values * scale.factor, codes.pattern, x.numel() * scale.variance)
        if price is None:
            return None
        total, rows = total + price * len(x), rows + len(x)
    return total / rows


def given(encoder: Given, shape: tuple[int, ...], scale: Scale) -> tuple[Tensor, Tensor]:
    """Read the user's encoder from its file, and bring it to the training scale.

    With y = s (x − μ):   x Wᵀ + b = (y Wᵀ + s (b + W μ)) / s.   So W, (latent, width), stays as it is, and the bias,
    (latent,), becomes s (b + W μ).

    Raises BadInput where there is no such file, or its bytes or its ``shape`` (latent, width) are others.
    """
    path = next((path for path in places(encoder.file) if path.is_file()), None)
    if path is None:
        raise BadInput(f"params.yaml: train.encoder names {encoder.file}, which is no file")
    if (actual_hash := sha256(path)) != encoder.sha256:
        raise BadInput(f"params.yaml: train.encoder.sha256 must be that of {encoder.file}, which is {actual_hash}")

    rows, bias = npz.encoder(path)
    if tuple(rows.shape) != shape:
        raise BadInput(
            f"{encoder.file} is of {rows.shape[0]} latents of width {rows.shape[1]}, but train.latents is {shape[0]} "
            f"and activations have {shape[1]} numbers"
        )

    # In float64: where rows lie far from 0, b and W μ are large, and may cancel.
    rows, bias = rows.to(scale.mean.device), bias.to(scale.mean.device)
    return rows, (scale.factor * (bias.double() + rows.double() @ scale.mean.double())).float()
