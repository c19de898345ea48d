"""Measure a reconstructor on stored activations. It is any function of rows that returns rows and active counts."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from strata.measure.metrics import OUTLIER, Errors, Sums, compared
from strata.rows.batches import Rows
from strata.run.door import BadInput

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows (row, width) -> x̂ (row, width), active latents (row,)


class Encodes(Protocol):
    """Anything that turns rows into sparse codes, as an SAE does."""

    @property
    def latents(self) -> int: ...
    def encode(self, x: Tensor) -> Any:
        """Return codes of ``x`` (row, width) that have a ``pattern``."""
        ...


class Quality:
    """Running metrics of all rows reconstructed: mse on the training scale, fvu, fvu_inlier, l0 and cosine."""

    def __init__(self, scale: float, median_norm: float) -> None:
        self._scale, self._largest = scale, OUTLIER * median_norm
        self._everything, self._inliers = Errors(), Errors()

    def add(self, x: Tensor, output: Tensor, active: Tensor, own: Sums | None = None) -> None:
        """Add rows ``x`` and their reconstructions ``output``, both (row, width) float32.

        ``active`` and ``own`` are as in :func:`strata.measure.metrics.compared`.
        """
        rows = compared(x, output, active, own)
        self._everything.add(rows)
        self._inliers.add(rows.of(rows.squares.sqrt() <= self._largest, x))

    def values(self) -> dict[str, Any]:
        """Return the metrics by name."""
        everything = self._everything
        return {
            "mse": everything.mse(self._scale),
            "fvu": everything.fvu(),
            "fvu_inlier": self._inliers.fvu(),
            "l0": everything.l0(),
            "cosine": everything.mean_cosine(),
        }


@torch.inference_mode()
def reconstruction(
    reconstruct: Reconstruct, blocks: Iterable[Tensor], scale: float, median_norm: float
) -> dict[str, Any]:
    """Measure the :class:`Quality` of a reconstructor on all rows of ``blocks``, in float32.

    ``scale`` and ``median_norm`` are those of the layer's training rows.
    """
    quality = Quality(scale, median_norm)
    for block in blocks:
        x = block.float()
        quality.add(x, *reconstruct(x))
    return quality.values()


@torch.inference_mode()
def firing_counts(sae: Encodes, blocks: Iterable[Tensor]) -> Tensor:
    """Count the rows on which each latent is active, (latent,)."""
    counts = torch.zeros(sae.latents, dtype=torch.long)
    for block in blocks:
        counts += torch.bincount(sae.encode(block.float()).pattern.latents, minlength=sae.latents).cpu()
    return counts


@torch.inference_mode()
def outliers(blocks: Iterable[Tensor], tokens: Tensor, median_norm: float) -> dict[str, Any]:
    """Describe the outliers, the rows whose norm exceeds 3 × the median.

    ``tokens``: (row,) token ids, aligned with the rows of ``blocks``.

    Returns the number of outliers, their shares of the rows and of the variance, and their ten commonest tokens, each
    with its count.
    """
    everything, outlying, masks = Errors(), Errors(), []
    for block in blocks:
        x = block.float()
        is_outlier = x.norm(dim=1) > OUTLIER * median_norm
        rows = compared(x, x, torch.zeros(len(x)))
        everything.add(rows)
        outlying.add(rows.of(is_outlier, x))
        masks.append(is_outlier)

    # Σ‖x − mean‖² over the outliers, with the mean of all rows.
    mean, n = everything.total / everything.rows, outlying.rows
    apart = outlying.squares - 2 * float(outlying.total @ mean) + n * float(mean @ mean) if n else 0.0

    ids, counts = tokens[torch.cat(masks)].unique(return_counts=True)
    order = counts.sort(descending=True, stable=True).indices[:10]
    return {
        "rows": n,
        "share_of_rows": n / everything.rows,
        "share_of_variance": apart / everything.variance if everything.variance > 0 else None,
        "tokens": [(int(ids[i]), int(counts[i])) for i in order],
    }


def check_held_out(rows: Rows, split: str) -> None:
    """Raise BadInput if the rows of a ``split``, validation or test, do not vary: then an fvu would mean nothing."""
    seen = Errors()
    for block in rows.blocks(*rows.split(split)):
        x = block.float()
        seen.add(compared(x, x, torch.zeros(len(x))))
        if seen.variance > 0:
            return
    count = f"has {seen.rows} row{'s' * (seen.rows != 1)}"
    reason = "and one alone does not vary" if seen.rows == 1 else "all the same" if seen.rows else "and needs two"
    raise BadInput(
        f"the {split} split {count}, {reason}: there is no variance of which an SAE could explain a share; bring more "
        f"documents, or raise fetch.corpus.{split}"
    )
