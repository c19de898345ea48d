"""Compute those of SAEBench's core metrics that train does not report, on the test split.

`l2_ratio`: mean of ‖x̂‖ / ‖x‖ over rows that are not zero; below 1 the reconstruction shrinks.
`relative_reconstruction_bias`: E‖x̂‖² / E⟨x, x̂⟩ (Rajamanoharan et al. 2024, eq. 10); 1 is unbiased.
`frequency_above_0.01`, `_0.1`: share of the latents that fire on more than 1 %, 10 % of the rows.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strata.evaluation.intervals import resampled, weights
from strata.rows.batches import Rows, blocks
from strata.sae.sae import SAE

FREQUENT = 0.01, 0.1
GROUPS = 100  # at most this many groups of neighbouring documents are drawn, so that memory has a bound


@torch.inference_mode()
def core(
    sae: SAE, activations: Rows, test_document: NDArray[np.integer], random: np.random.Generator
) -> dict[str, Any] | None:
    """Compute the metrics, each with an interval, which is a bootstrap over documents; None without test rows.

    ``test_document``: (row,) the document of each test row. Where there are more than GROUPS documents, neighbouring
    ones are drawn together.
    """
    documents, document_number = np.unique(test_document, return_inverse=True)
    if not len(documents):
        return None
    groups = min(len(documents), GROUPS)
    group = torch.from_numpy(document_number * groups // len(documents)).to(sae.b_dec.device)  # (row,)

    # Sums over the rows of each group: rows, rows that are not zero, ‖x̂‖ / ‖x‖, ‖x̂‖², ⟨x, x̂⟩; and firing counts.
    sums = torch.zeros(groups, 5, device=group.device, dtype=torch.float64)
    counts = torch.zeros(groups, sae.latents, device=group.device, dtype=torch.float64)
    first = 0
    for block in blocks(activations, *activations.split("test"), group.device):
        x, block_group = block.float(), group[first : first + len(block)]
        first += len(block)

        codes = sae.encode(x)
        output, size = sae.decode(codes), x.norm(dim=1)
        dot = torch.linalg.vecdot
        ratio = torch.where(size > 0, output.norm(dim=1) / size, 0)  # a row of zeros has none
        columns = (torch.ones_like(size), size > 0, ratio, dot(output, output), dot(x, output))
        sums.index_add_(0, block_group, torch.stack(columns, 1).double())

        flat = block_group[codes.pattern.row_of] * sae.latents + codes.pattern.latents
        counts += torch.bincount(flat, minlength=counts.numel()).view_as(counts)

    # The first draw takes each group once: it gives the value, the others give its interval.
    draws = np.concatenate([np.ones((1, groups), np.int64), weights(groups, random)])
    rows, nonzero, ratio, squares, products = (draws @ sums.cpu().numpy()).T
    fired = counts.cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of rows that are all zero has neither
        metrics = {"l2_ratio": ratio / nonzero, "relative_reconstruction_bias": squares / products}
    for bound in FREQUENT:  # one draw at a time, because (draw, latent) would be large
        shares = [(draw @ fired > bound * n).mean() for draw, n in zip(draws, rows, strict=True)]
        metrics[f"frequency_above_{bound}"] = np.array(shares)
    return {name: resampled(float(values[0]), values[1:]) for name, values in metrics.items()}
