"""Train the twins of an SAE, and judge them on the held-out rows that the SAE is judged on.

A twin has the SAE's knobs, seed, rows, batches and number of steps, and where k sets how many latents are active also
its l0. It differs in one thing: a part of it stays random. It begins with the same directions as the SAE, unless these
are taken from the data (``train.init``): what is held has to be random.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strata.lm.model import LanguageModel
from strata.measure import quality
from strata.rows import batches
from strata.rows.batches import Rows
from strata.rows.shards import Activations, Contexts
from strata.sae.sae import SAE
from strata.splicing.held_out import held_out
from strata.training import training
from strata.training.fit import Fitted
from strata.training.knobs import Train
from strata.twins.knobs import HELD
from strata.twins.margins import margins, of_predictions, of_rows
from strata.verdict.targets import Targets, Twin

SAE_NAME = "sae"


def knobs_of(train: Train) -> Train:
    """Return the knobs of a twin: those of its SAE, but for first directions from the data, which are not random."""
    return train.model_copy(update={"init": "kaiming"}) if train.init == "data" else train


def train_twin(
    twin: Twin,
    activations: Rows,
    train: Train,
    targets: Targets,
    seed: int,
    work: Path | None,
    save_every: float,
    device: torch.device,
) -> Fitted:
    """Train the ``twin`` of the SAE that the knobs ``train`` make. The rest is as in `training.train`."""
    return training.train(
        activations,
        knobs_of(train) if twin in HELD else train,
        targets,
        seed,
        work=work,
        save_every=save_every,
        device=device,
        held=HELD.get(twin),
    )


@torch.inference_mode()
def measure(
    sae: SAE,
    twins: Mapping[str, SAE],
    activations: Activations,
    contexts: Contexts,
    lm: LanguageModel | None,
    ce_tokens: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Judge ``twins`` on the test rows as their ``sae`` is judged, and hold each against it.

    Returns twin -> its metrics as ``test`` and its margins as ``margin``, and twin -> the share of all stored rows on
    which each latent is active, (latent,) float64.
    """
    device = sae.decoder.device
    candidates = {SAE_NAME: sae.reconstruct, **{name: twin.reconstruct for name, twin in twins.items()}}
    hook = activations.meta["hook"]
    metrics, predictions = held_out(candidates, activations, contexts, hook, lm, ce_tokens, device)

    frequencies = {name: firing_rate(twin, activations) for name, twin in twins.items()}
    for name, frequency in frequencies.items():
        metrics[name]["dead"] = float((frequency == 0).float().mean())

    # One draw of documents counts for all candidates.
    _, test_document = contexts.rows("test")
    random = np.random.default_rng([seed, activations.layer])
    values = of_rows(candidates, activations, test_document, random, device)
    if predictions.losses:
        for name, of_tokens in of_predictions(predictions, list(candidates), random).items():
            values[name] |= of_tokens

    result = {name: {"test": metrics[name], "margin": margins(values[SAE_NAME], values[name])} for name in twins}
    return result, frequencies


@torch.inference_mode()
def measure_elsewhere(twin: SAE, activations: Activations, contexts: Contexts) -> tuple[dict[str, Any], Tensor]:
    """Judge a twin on test ``activations`` that are not its SAE's, so that there are no ce metrics and no margins.

    Returns its ``test`` and ``margin``, and its firing rate, as :func:`measure` does of each twin.
    """
    hook, device = activations.meta["hook"], twin.decoder.device
    metrics, _ = held_out({"twin": twin.reconstruct}, activations, contexts, hook, None, 0, device)
    frequency = firing_rate(twin, activations)
    test = {**metrics["twin"], "dead": float((frequency == 0).float().mean())}
    return {"test": test, "margin": {}}, frequency


def firing_rate(sae: SAE, activations: Activations) -> Tensor:
    """Compute the share of all stored rows on which each latent is active, (latent,) float64."""
    counts = quality.firing_counts(sae, batches.blocks(activations, 0, activations.rows, sae.decoder.device))
    return counts.double() / activations.rows
