"""Give the groups an encoder, so that the merged dictionary is an ordinary SAE, which other tools can load.

A group reads the mean of what its members read, weighted by what they write: w = Σ p_j w_j. Its bias and threshold are
the same mean. The weight p_j = E[z′ m_j z_j] / E[z′²] is member j's part of the power of the group's code z′ (m_j is
the share of j), so that Σ p_j = 1. A group of one keeps its latent's encoder.

Then all thresholds are multiplied by one factor, so that on the validation rows as many latents are active on a row as
groups were. With topk that number is k. The decoder is fitted to these codes afterwards.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from strata.merging.groups import Groups
from strata.merging.moments import Floats, Moments
from strata.sae.sae import SAE, Codes, threshold_for


def powers(moments: Moments, groups: Groups) -> Floats:
    """Compute the weights p (latent,), 0 for latents without a group.

    The members of a group that is silent on the training rows have equal weights.
    """
    weights = np.zeros(len(groups.of))
    for members in groups.members():
        share = groups.shares[members]
        part = share * (moments.gram[np.ix_(members, members)] @ share)
        weights[members] = part / part.sum() if part.sum() > 0 else 1 / len(members)
    return weights


def ordinary(
    sae: SAE, moments: Moments, groups: Groups, validation: Callable[[], Iterable[Tensor]], per_row: float
) -> SAE:
    """Build an SAE with the groups' encoder. Its decoder is a mean too, and still has to be fitted.

    ``validation``: called to read the validation rows, (row, width) a block. ``per_row``: the mean number of active
    latents on a row that is wanted.
    """
    device, inside = sae.decoder.device, np.flatnonzero(groups.of >= 0)
    part = torch.from_numpy(powers(moments, groups)[inside]).float().to(device)
    of, kept = (torch.from_numpy(x).to(device) for x in (groups.of[inside], inside))

    def mean(rows: Tensor) -> Tensor:
        """Average ``rows`` (latent, …) over the members of each group, (group, …)."""
        weight = part.reshape(-1, *[1] * (rows.dim() - 1))
        return rows.new_zeros(groups.count, *rows.shape[1:]).index_add_(0, of, weight * rows[kept])

    merged = replace(
        sae, encoder=mean(sae.encoder), b_enc=mean(sae.b_enc), decoder=mean(sae.decoder), groups=None, shares=None
    )
    if sae.threshold is None:
        return replace(merged, k=min(max(1, round(per_row)), groups.count))

    # In units of its own threshold, every latent has the threshold 1, and the common factor is the only one to find.
    cut = mean(sae.threshold.clamp(min=0)).clamp(min=1e-6)
    unit = replace(merged, encoder=merged.encoder / cut[:, None], b_enc=merged.b_enc / cut, threshold=None)
    return replace(merged, threshold=cut * threshold_for(unit, validation, per_row))


def encoded(sae: SAE, blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Codes]]:
    """Yield each block of rows (row, width) with the codes of ``sae``, on the CPU."""
    for block in blocks:
        yield block, sae.encode(block.float()).to(torch.device("cpu"))
