"""The rows of prompts -> what a probe sees of each prompt: one row of codes, or of activations, by pooling."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from strata.run.progress import each
from strata.sae.sae import SAE
from strata.tasks.knobs import Pooling
from strata.tasks.read import PromptRows

Columns = dict[Pooling, csr_matrix]  # (prompt, latent or channel) float32, sparse, so that those of many prompts fit


@torch.inference_mode()
def pooled(rows: PromptRows, pooling: Sequence[Pooling], sae: SAE | None) -> Columns:
    """Pool the codes of ``sae`` over each prompt's rows, or without an SAE the activations themselves.

    ``last``: the codes of the last row. ``mean``: the mean over the stored rows. Each is (prompt, latent).
    """
    numbers: list[NDArray[np.integer]] = []
    parts: dict[Pooling, list[csr_matrix]] = {name: [] for name in pooling}
    for x, prompt, counts in each(rows, "pool", "parts"):
        numbers.append(prompt.numpy())
        last = counts.cumsum(0) - 1  # (prompt,) the place of its last row
        place = torch.repeat_interleave(torch.arange(len(counts)), counts)  # (row,) the place of its prompt
        if "mean" not in pooling:
            x, place, counts, last = x[last], place[last], torch.ones_like(counts), torch.arange(len(counts))

        is_last = torch.zeros(len(x), dtype=torch.bool)
        is_last[last] = True
        sums = _sums(x.float(), place, is_last, len(counts), sae)
        for name in pooling:
            dense = sums["last"] if name == "last" else sums["mean"] / counts[:, None]
            parts[name].append(csr_matrix(dense.numpy()))
    order = np.argsort(np.concatenate(numbers))
    return {name: csr_matrix(vstack(part, "csr"))[order] for name, part in parts.items()}


def _sums(x: Tensor, place: Tensor, is_last: Tensor, prompts: int, sae: SAE | None) -> dict[Pooling, Tensor]:
    """Add up the codes of each prompt's rows, and those of its last row alone, (prompt, latent) on the CPU.

    ``x``: (row, width). ``place``: (row,) the place of its prompt. ``is_last``: (row,).
    """
    if sae is None:
        return {"mean": torch.zeros(prompts, x.shape[1]).index_add_(0, place, x), "last": x[is_last]}

    device = sae.b_dec.device
    codes = sae.encode(x.to(device))
    row_of = codes.pattern.row_of
    flat = place.to(device)[row_of] * sae.latents + codes.pattern.latents

    def added(values: Tensor) -> Tensor:
        total = torch.zeros(prompts * sae.latents, device=device).index_add_(0, flat, values)
        return total.view(prompts, sae.latents).cpu()

    return {"mean": added(codes.values), "last": added(codes.values * is_last.to(device)[row_of])}
