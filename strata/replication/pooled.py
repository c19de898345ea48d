"""Make one dictionary of the latents that come again (arXiv 2606.12138).

The latents of all trainings are gone through in order, first those of the layer's SAE. A latent whose decoder row has a
cosine above the threshold with one that stands for others joins it; else it stands for itself. Those that stand for
latents of at least two trainings make up the pool. Each keeps the encoder that it was trained with. Then one factor for
all thresholds gives the pool as many active latents a row as the layer's SAE has, and least squares fit the decoder.

The control is as many latents of the same trainings, drawn at random among those that fire, and fitted likewise.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.merging.encoder import encoded
from strata.merging.groups import alone
from strata.merging.moments import moments
from strata.merging.refit import refit
from strata.replication.match import by_cosine
from strata.sae.sae import SAE, threshold_for

Ints = NDArray[np.int64]
Blocks = Callable[[], Iterable[Tensor]]  # reads rows, (row, width) a block
RIDGE = 1e-2  # pull of the fitted decoder towards the trained one, over the mean variance of a code


@dataclass(frozen=True)
class Chosen:
    """Latents out of several trainings: the ``training`` (latent,) that each is of, counted from 0, and its number
    ``source`` (latent,) there. ``trainings``: (latent,) in how many of them it is."""

    training: Ints
    source: Ints
    trainings: Ints

    def __len__(self) -> int:
        return len(self.source)

    def table(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Make the columns of `pooled.parquet` (see `read.py`). ``seeds``: of the trainings."""
        seed = np.array(seeds)[self.training]
        return {"latent": np.arange(len(self)), "seed": seed, "source": self.source, "trainings": self.trainings}


def pool(decoders: Sequence[Tensor], least: float) -> Chosen:
    """Choose the latents that come again.

    ``decoders``: (latent, width) of each training. ``least``: the cosine above which two latents are the same.
    """
    training, source, seen_in = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    directions = decoders[0][:0]
    for number, decoder in enumerate(decoders):
        leader = nearest_leader(decoder, directions, least)
        seen_in[np.unique(leader[leader >= 0])] += 1

        leads = leading(decoder, np.flatnonzero(leader < 0), least)
        training = np.concatenate([training, np.full(len(leads), number)])
        source = np.concatenate([source, leads])
        seen_in = np.concatenate([seen_in, np.ones(len(leads), np.int64)])
        directions = torch.cat([directions, decoder[torch.from_numpy(leads).to(decoder.device)]])
    again = seen_in > 1
    return Chosen(training[again], source[again], seen_in[again])


def nearest_leader(decoder: Tensor, leaders: Tensor, least: float) -> Ints:
    """Return (latent,) the nearest of the ``leaders`` (leader, width), or -1 where none is above ``least``."""
    nearest = np.full(len(decoder), -1)
    if len(leaders):
        pairs = by_cosine(decoder, leaders, least)
        order = np.lexsort((-pairs.second, pairs.value))  # the largest cosine last; of equal ones the first leader
        nearest[pairs.first[order]] = pairs.second[order]
    return nearest


def leading(decoder: Tensor, candidates: Ints, least: float) -> Ints:
    """Return those of the ``candidates``, in their order, that are not above ``least`` with one returned before."""
    rows = decoder[torch.from_numpy(candidates).to(decoder.device)]
    pairs = by_cosine(rows, rows, least)
    neighbours: dict[int, list[int]] = {}
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        if second < first:
            neighbours.setdefault(first, []).append(second)

    stands = np.ones(len(candidates), bool)
    for latent in sorted(neighbours):
        stands[latent] = not stands[neighbours[latent]].any()
    return candidates[stands]


def drawn(fires: Sequence[NDArray[np.bool_]], count: int, random: np.random.Generator) -> Chosen:
    """Draw ``count`` latents, or all if there are fewer, of those that fire. ``fires``: (latent,) of each training."""
    training = np.concatenate([np.full(len(alive), number) for number, alive in enumerate(fires)])
    source = np.concatenate([np.arange(len(alive)) for alive in fires])
    living = np.flatnonzero(np.concatenate(fires))
    taken = np.sort(random.choice(living, min(count, len(living)), replace=False))
    return Chosen(training[taken], source[taken], np.ones(len(taken), np.int64))


def joined(saes: Sequence[SAE], chosen: Chosen) -> SAE:
    """Put the ``chosen`` latents of ``saes`` into one SAE, as they are. It has the decoder bias of the first one.

    A latent reads (x − b) w + c. With the bias b₀ it reads the same from (x − b₀) w + c + (b₀ − b) w.
    """
    first = saes[0]
    parts: dict[str, list[Tensor]] = {name: [] for name in ("encoder", "b_enc", "decoder", "threshold")}
    for number, sae in enumerate(saes):
        own = torch.from_numpy(chosen.source[chosen.training == number]).to(sae.decoder.device)
        shift = sae.encoder.double() @ (first.b_dec - sae.b_dec).double()
        parts["encoder"].append(sae.encoder[own])
        parts["b_enc"].append((sae.b_enc + shift).float()[own])
        parts["decoder"].append(sae.decoder[own])
        if sae.threshold is not None:
            parts["threshold"].append(sae.threshold[own])

    assert (np.diff(chosen.training) >= 0).all(), "the latents of a training stand together"
    tensors = {name: torch.cat(part) for name, part in parts.items() if part}
    k = None if first.k is None else min(first.k, len(chosen))
    return replace(first, **tensors, k=k, groups=None, shares=None)


def with_l0(sae: SAE, validation: Blocks, per_row: float) -> SAE:
    """Multiply all thresholds by the one factor that gives ``per_row`` active latents on a row of ``validation``.

    Topk has no thresholds, and stays as it is.
    """
    if sae.threshold is None:
        return sae
    # In units of its own threshold, every latent has the threshold 1.
    cut = sae.threshold.clamp(min=1e-6)
    unit = replace(sae, encoder=sae.encoder / cut[:, None], b_enc=sae.b_enc / cut, threshold=None)
    return replace(sae, threshold=cut * threshold_for(unit, validation, per_row))


def fitted(sae: SAE, training: Blocks) -> SAE:
    """Fit the decoder and its bias to the codes by least squares on the ``training`` rows.

    A decoder that ends in tanh or sigmoid is not linear, and stays as it is.
    """
    if sae.mean is not None:
        return sae
    sums = moments(encoded(sae, training()), sae.latents, sae.width)
    each_alone = alone(sae.latents, np.arange(sae.latents))
    decoder, bias = refit(sums, each_alone, sae.decoder.double().cpu().numpy(), RIDGE)

    device = sae.decoder.device
    new_bias = torch.from_numpy(bias).to(device)
    shift = sae.encoder.double() @ (new_bias - sae.b_dec.double())  # what the encoder reads stays the same
    return replace(
        sae,
        b_enc=(sae.b_enc + shift).float(),
        decoder=torch.from_numpy(decoder).float().to(device),
        b_dec=new_bias.float(),
    )


def dictionary(saes: Sequence[SAE], chosen: Chosen, validation: Blocks, training: Blocks, per_row: float) -> SAE:
    """Make the SAE of the ``chosen`` latents, with ``per_row`` active ones on a row, and its decoder fitted."""
    return fitted(with_l0(joined(saes, chosen), validation, per_row), training)
