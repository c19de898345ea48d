"""Certify each latent: the probability that it comes again when the SAE is trained with another seed.

A latent comes again in another training if the one-to-one matching (`match.py`) gives it a partner there. The
probability is the share of the trainings in which it does. There are two of them:

`again`            the partner's decoder row has a cosine above a threshold (Paulo & Belrose 2025, "Sparse autoencoders
                   trained on the same data learn different features")
`again_cofiring`   the partner's codes have a correlation above a threshold, on held-out rows

Beside each of them stands its chance. For `again` the other decoder is replaced by random directions, and by training
rows from which their mean is subtracted: that control may win where few directions hold most of the variance. For
`again_cofiring` the other latents' firing is moved to other rows. A latent's chance is the mean over the tenth of the
latents that fire about as often: a latent that fires on few rows is easily matched by accident.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array
from torch import Tensor

from strata.evaluation.intervals import over_seeds
from strata.replication import cofiring
from strata.replication.match import NOBODY, Similar, assigned, by_cosine
from strata.sae.sae import SAE

BANDS = 10  # groups of latents by how often they fire
BINS = 40  # of the histograms, from 0 to 1
MEASURES = {"cosine": "again", "cofiring": "again_cofiring"}  # a similarity -> what it certifies
CONTROLS = {"random": "cosine", "rows": "cosine", "moved": "cofiring"}  # a control -> the similarity that it is for
MEASURED = {**{name: name for name in MEASURES}, **CONTROLS}


@dataclass(frozen=True)
class Thresholds:
    """The least ``cosine`` and the least correlation of codes, ``cofiring``, at which two latents are the same."""

    cosine: float
    cofiring: float


@dataclass(frozen=True)
class Dictionary:
    """An SAE, and its codes ``z`` (row, latent) on the held-out rows on which all are compared."""

    sae: SAE
    z: csc_array


def compared(
    own: Dictionary, other: Dictionary, draws: Tensor, least: Thresholds, generator: torch.Generator
) -> dict[str, Tensor]:
    """Match the latents of ``own`` with those of ``other`` and of the controls.

    ``draws``: (latent, width) centred rows, as many as the other dictionary has latents. ``generator``: draws the
    random directions and moves the firing; on the CPU.

    Returns, for each of cosine, cofiring, random, rows and moved, (latent,): the largest similarity with any latent,
    and under `<name>_again` whether the latent has a partner.
    """
    decoder, device = own.sae.decoder, own.sae.decoder.device
    random = torch.randn(other.sae.decoder.shape, generator=generator).to(device)
    shifts = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))

    similarities: dict[str, Similar] = {
        "cosine": by_cosine(decoder, other.sae.decoder, least.cosine),
        "random": by_cosine(decoder, random, least.cosine),
        "rows": by_cosine(decoder, draws.to(device), least.cosine),
        "cofiring": cofiring.by_correlation(own.z, other.z, least.cofiring),
        "moved": cofiring.by_correlation(own.z, cofiring.moved(other.z, shifts), least.cofiring),
    }
    results = {}
    for name, pairs in similarities.items():
        results[name] = torch.from_numpy(pairs.best).float()
        results[f"{name}_again"] = torch.from_numpy(assigned(pairs) != NOBODY)
    return results


def certificates(by_seed: Sequence[dict[str, Tensor]], fired: NDArray[np.int64], rows: int) -> dict[str, Any]:
    """Make the columns of `latents.parquet` (see `read.py`) of what :func:`compared` returned for each training.

    ``fired``: (latent,) on how many of the held-out ``rows`` each latent fires. Where it fires on none, nothing can be
    said of its co-firing, which is NaN.
    """
    mean = {name: np.mean([seed[name].double().numpy() for seed in by_seed], axis=0) for name in by_seed[0]}
    band = np.argsort(np.argsort(fired, kind="stable"), kind="stable") * BANDS // len(fired)  # (latent,)

    def chance(control: str) -> NDArray[np.float64]:
        """Average over the latents that fire about as often."""
        hits, latents = np.bincount(band, mean[f"{control}_again"], BANDS), np.bincount(band, minlength=BANDS)
        return (hits / np.maximum(latents, 1))[band]

    silent = fired == 0
    columns: dict[str, Any] = {
        "latent": np.arange(len(fired), dtype=np.int32),
        "seeds": np.full(len(fired), len(by_seed), np.int32),
        "density": fired / rows,
    }
    for similarity, certificate in MEASURES.items():
        chances = [chance(control) for control, of in CONTROLS.items() if of == similarity]
        columns[certificate] = mean[f"{similarity}_again"]
        columns[f"{certificate}_chance"] = np.max(chances, axis=0)
        columns[similarity] = mean[similarity]
    for name in ("again_cofiring", "again_cofiring_chance", "cofiring"):
        columns[name] = np.where(silent, np.nan, columns[name])
    return columns


def summary(by_seed: Sequence[dict[str, Tensor]], fired: NDArray[np.int64]) -> dict[str, Any]:
    """Summarise the certificates for the report.

    For each similarity and control: the share of the latents that come again, and the mean of the largest similarities,
    with the least and the most over the trainings. Co-firing is of the latents that fire on the held-out rows.
    ``fired``: as :func:`certificates` takes it; at least one latent fires.

    ``times``: how many latents come again in none of the trainings, in one, and so on. ``histogram``: how many latents
    have a largest similarity (the mean over the trainings) between two ``edges``.
    """
    alive = torch.from_numpy(fired > 0)
    edges = np.linspace(0, 1, BINS + 1)

    def measures(name: str, certificate: str) -> dict[str, Any]:
        of = alive if name in ("cofiring", "moved") else torch.ones_like(alive)
        return {
            certificate: over_seeds([float(seed[f"{name}_again"][of].float().mean()) for seed in by_seed]),
            f"best_{MEASURED[name]}": over_seeds([float(seed[name][of].mean()) for seed in by_seed]),
        }

    def counts(name: str) -> list[int]:
        mean = torch.stack([seed[name] for seed in by_seed]).mean(0).clamp(0, 1)
        return np.histogram(mean[alive].numpy(), edges)[0].tolist()

    again = torch.stack([seed["cosine_again"] for seed in by_seed]).sum(0)  # (latent,) in how many trainings
    return {
        **measures("cosine", "again"),
        **measures("cofiring", "again_cofiring"),
        "controls": {control: measures(control, MEASURES[of]) for control, of in CONTROLS.items()},
        "times": torch.bincount(again, minlength=len(by_seed) + 1).tolist(),
        "histogram": {"edges": edges.round(4).tolist(), **{name: counts(name) for name in (*MEASURES, *CONTROLS)}},
    }
