"""Controls that an SAE must beat: reconstructors that have learned nothing sparse, or nothing at all."""

from collections.abc import Iterable

import torch
from torch import Tensor

from strata.measure.quality import Reconstruct


def mean(mean_row: Tensor) -> Reconstruct:
    """Return a reconstructor that always answers with the mean of the training rows; no latent is active."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        return mean_row.expand_as(x), torch.zeros(len(x), device=x.device)

    return reconstruct


def principal(blocks: Iterable[Tensor], mean_row: Tensor) -> Tensor:
    """Compute the principal components of the rows of ``blocks`` around ``mean_row`` (width,).

    Returns (width, component), the leading components first. It takes one pass over the blocks and (width, width) of
    memory. The covariance of each block is in float32, their sum in float64.
    """
    width = len(mean_row)
    covariance = torch.zeros(width, width, dtype=torch.float64, device=mean_row.device)
    for block in blocks:
        centred = block.float() - mean_row
        covariance += (centred.T @ centred).double()
    return torch.linalg.eigh(covariance).eigenvectors.flip(1).float()


def pca(blocks: Iterable[Tensor], mean_row: Tensor, components: int) -> Reconstruct:
    """Return a reconstructor from the ``components`` leading principal components of the training rows.

    With ``components`` = k it uses as many numbers for a token as an SAE with k active latents.
    """
    basis = principal(blocks, mean_row)[:, :components]

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - mean_row) @ basis @ basis.T + mean_row, torch.full((len(x),), basis.shape[1], device=x.device)

    return reconstruct
