"""Controls that an SAE must beat: reconstructors that have learned nothing sparse, or nothing at all."""

from collections.abc import Iterable

import torch
from torch import Tensor

from strata.measure.quality import Reconstruct
from strata.rows.batches import Rows, blocks


def mean(mean_row: Tensor) -> Reconstruct:
    """Return a reconstructor that always answers with the mean of the training rows; no latent is active."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        return mean_row.expand_as(x), torch.zeros(len(x), device=x.device)

    return reconstruct


def principal(rows: Iterable[Tensor], mean_row: Tensor) -> Tensor:
    """Compute the principal components of ``rows``, which come in blocks, around ``mean_row`` (width,).

    Returns (width, component), the leading components first. It takes one pass over the blocks and (width, width) of
    memory. The covariance of each block is in float32, their sum in float64.
    """
    width = len(mean_row)
    covariance = torch.zeros(width, width, dtype=torch.float64, device=mean_row.device)
    for block in rows:
        centred = block.float() - mean_row
        covariance += (centred.T @ centred).double()
    return torch.linalg.eigh(covariance).eigenvectors.flip(1).float()


def pca(rows: Iterable[Tensor], mean_row: Tensor, components: int) -> Reconstruct:
    """Return a reconstructor from the ``components`` leading principal components of the training rows.

    With ``components`` = k it uses as many numbers for a token as an SAE with k active latents.
    """
    basis = principal(rows, mean_row)[:, :components]

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - mean_row) @ basis @ basis.T + mean_row, torch.full((len(x),), basis.shape[1], device=x.device)

    return reconstruct


def of(rows: Rows, untrained: Reconstruct, components: int, device: torch.device) -> dict[str, Reconstruct]:
    """Return the controls of an SAE that was trained on ``rows``, by name.

    ``untrained``: the SAE as it was before training. ``components``: of pca, as many as the SAE has active latents.
    """
    mean_row = rows.mean.to(device)
    training_rows = blocks(rows, *rows.split("train"), device)
    return {"mean": mean(mean_row), "pca": pca(training_rows, mean_row, components), "untrained": untrained}


def named(
    sae: Reconstruct, untrained: Reconstruct, rows: Rows, components: int, device: torch.device
) -> dict[str, Reconstruct]:
    """Return an SAE and its controls by the names that a table for people has."""
    found = of(rows, untrained, components, device)
    return {
        "SAE": sae,
        f"PCA, {components} components": found["pca"],
        "untrained": untrained,
        "mean": found["mean"],
    }
