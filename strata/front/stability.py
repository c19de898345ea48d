"""Which latents of an SAE come again in others that were trained alike with other seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from strata import defaults
from strata.front.activations import LayerActivations
from strata.front.files import sae_of
from strata.notebook import Vectors
from strata.replication import certificate, cofiring
from strata.replication.certificate import Dictionary, Thresholds
from strata.replication.knobs import Stability
from strata.run import door
from strata.run.door import BadInput
from strata.sae.sae import SAE
from strata.seeds import generator

KNOBS = ("cosine", "cofiring")  # of the section stability; the others are about trainings
BLOCK = 4096  # rows that are encoded at a time
ROWS = "it must be what strata.activations gives for one layer, Vectors, or (row, width), an array or a tensor"


def stability(saes: Any, rows: Any, seed: int = 0, device: str = "cpu", **knobs: Any) -> pd.DataFrame:
    """Say of each latent of the first of ``saes`` how probable it is that it comes again in the others.

    ``saes``: two or more, trained alike on the same rows, each with its own seed. ``rows``: raw activations on which
    the firing of latents is compared: of what :func:`strata.activations` gives the test rows, else all, and at most as
    many as ``stability.rows`` of params.yaml says. ``knobs``: the thresholds ``cosine`` and ``cofiring`` of that
    section. ``seed``: draws the controls.

    Returns a line a latent. ``again``: the share of the other SAEs in which the one-to-one matching gives it a partner
    of nearly the same decoder direction; ``again_cofiring``: of nearly the same firing, NaN where it never fires on
    these rows. Each has its ``_chance`` beside it. ``cosine``, ``cofiring``: its largest similarity, as a mean over
    the others.

    >>> saes = [strata.train(acts[6], k=32, seed=seed) for seed in range(4)]              # doctest: +SKIP
    >>> strata.stability(saes, acts[6]).query("again == 1")                               # doctest: +SKIP
    """
    models = [sae_of(sae) for sae in saes] if isinstance(saes, Sequence) else None
    if models is None or len(models) < 2:
        raise BadInput(f"saes is {door.a_thing(saes)}; it must be a list of two SAEs or more, the one to judge first")
    door.whole("seed", seed, 0)
    for name in knobs:
        door.choice("a knob of stability", name, KNOBS)
    settings, where = defaults.knobs("stability", Stability, knobs), door.device(device)
    x = held_out_rows(rows, settings.rows).to(where)
    for number, model in enumerate(models):
        if model.width != x.shape[1]:
            raise BadInput(f"saes[{number}] reads {model.width} numbers, but a row has {x.shape[1]}")

    def dictionary(model: SAE) -> Dictionary:
        moved = model.to(where)
        return Dictionary(moved, cofiring.codes(moved, x.split(BLOCK)))

    own, least = dictionary(models[0]), Thresholds(settings.cosine, settings.cofiring)
    centred, by_seed = x - x.mean(0), []
    for number, model in enumerate(models[1:]):
        random = generator(seed, "stability", number)
        draws = centred[torch.randint(len(x), (model.latents,), generator=random).to(where)]
        by_seed.append(certificate.compared(own, dictionary(model), draws, least, random))
    return pd.DataFrame(certificate.certificates(by_seed, cofiring.fired(own.z), len(x)))


def held_out_rows(rows: Any, most: int) -> Tensor:
    """Return at most ``most`` rows, (row, width) float32: of a layer's activations the first test rows."""
    if isinstance(rows, LayerActivations):
        first, end = rows.split("test")
        return rows.read(first, min(end, first + most)).float()
    numbers = rows.x if isinstance(rows, Vectors) else rows
    if not isinstance(numbers, np.ndarray | Tensor) or numbers.ndim != 2 or len(numbers) < 2:
        raise BadInput(f"rows is {door.a_thing(rows)}; {ROWS}")
    if isinstance(numbers, np.ndarray) and numbers.dtype.kind not in "fiu":
        raise BadInput(f"rows is an array of {numbers.dtype}; {ROWS}")
    return torch.as_tensor(numbers[:most]).detach().float()
