"""An encoder for the groups, so that the merged dictionary is an ordinary SAE, which other tools load.

A group reads the mean of what its members read, weighted by what they write: w = Σ p_j w_j, and so the bias and the
threshold, with p_j = E[z′ m_j z_j] / E[z′²] the part of the group's power that is member j's (m_j: its share), so that
Σ p_j = 1. A group of one keeps its latent's encoder. One factor on all thresholds then gives as many active latents a
row as the groups have, on the validation rows; with topk that number is k. The decoder is fitted to these codes.
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
    """(latent,) p, 0 outside the groups; equal parts in a group that is silent on the training rows."""
    found = np.zeros(len(groups.of))
    for members in groups.members():
        share = groups.shares[members]
        part = share * (moments.gram[np.ix_(members, members)] @ share)
        found[members] = part / part.sum() if part.sum() > 0 else 1 / len(members)
    return found


def ordinary(
    sae: SAE, moments: Moments, groups: Groups, validation: Callable[[], Iterable[Tensor]], per_row: float
) -> SAE:
    """``sae`` with the groups' encoder; its decoder is still to be fitted. ``per_row``: active latents wanted."""
    device, inside = sae.decoder.device, np.flatnonzero(groups.of >= 0)
    part = torch.from_numpy(powers(moments, groups)[inside]).float().to(device)
    of, kept = (torch.from_numpy(x).to(device) for x in (groups.of[inside], inside))

    def mean(rows: Tensor) -> Tensor:
        weight = part.reshape(-1, *[1] * (rows.dim() - 1))
        return rows.new_zeros(groups.count, *rows.shape[1:]).index_add_(0, of, weight * rows[kept])

    found = replace(
        sae, encoder=mean(sae.encoder), b_enc=mean(sae.b_enc), decoder=mean(sae.decoder), groups=None, shares=None
    )
    if sae.threshold is None:
        return replace(found, k=min(max(1, round(per_row)), groups.count))
    cut = mean(sae.threshold.clamp(min=0)).clamp(min=1e-6)
    unit = replace(found, encoder=found.encoder / cut[:, None], b_enc=found.b_enc / cut, threshold=None)
    return replace(found, threshold=cut * threshold_for(unit, validation, per_row))


def encoded(sae: SAE, blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Codes]]:
    """Blocks of rows with the codes of ``sae``."""
    for block in blocks:
        yield block, sae.encode(block.float()).to(torch.device("cpu"))
