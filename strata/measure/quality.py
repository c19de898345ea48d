"""Measure a reconstructor on stored activations. It is any function of rows that returns rows and active counts.

Sums over the whole set are in float64, and nothing is an average of averages.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

ROUNDING = 1e-12  # the relative error that a sum in float64 may have
OUTLIER = 3.0  # a row is an outlier when its norm exceeds this times the layer's median norm
Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows (row, width) -> x̂ (row, width), active latents (row,)


@dataclass(frozen=True)
class Compared:
    """Rows x compared with their reconstructions x̂.

    For each row, (row,): ``error`` ‖x − x̂‖², ``squares`` ‖x‖², the ``cosine`` of x and x̂, and the number of ``active``
    latents. ``total``: Σx over the rows, (width,) float64.
    """

    error: Tensor
    squares: Tensor
    cosine: Tensor
    active: Tensor
    total: Tensor

    def of(self, kept: Tensor, x: Tensor) -> "Compared":
        """Restrict to the rows where ``kept`` (row,) is True. ``x``: all rows (row, width).

        The dropped rows are subtracted from the total, so this is quickest where few rows are dropped.
        """
        rows = (self.error[kept], self.squares[kept], self.cosine[kept], self.active[kept])
        return Compared(*rows, self.total - x[~kept].sum(0, dtype=torch.float64))


class Sums(NamedTuple):
    """What :func:`compared` needs of the rows x alone: ``squares`` ‖x‖² (row,) and ``total`` Σx (width,).

    Both are float64, because the variance is a small difference of such large numbers.
    """

    squares: Tensor
    total: Tensor


def sums(x: Tensor) -> Sums:
    """Return the :class:`Sums` of ``x`` (row, width)."""
    x = x.double()
    return Sums(torch.linalg.vecdot(x, x), x.sum(0))


def compared(x: Tensor, reconstruction: Tensor, active: Tensor, own: Sums | None = None) -> Compared:
    """Compare rows with their reconstructions.

    ``x``, ``reconstruction``: (row, width). ``active``: (row,) numbers of active latents. ``own``: the :func:`sums` of
    ``x``, where they are known already.
    """
    dot, (squares, total) = torch.linalg.vecdot, own or sums(x)
    difference = x - reconstruction
    norms = (squares * dot(reconstruction, reconstruction)).sqrt().clamp(min=1e-30)
    return Compared(dot(difference, difference), squares, dot(x, reconstruction) / norms, active, total)


@dataclass
class Errors:
    """Running sums over rows x and reconstructions x̂: the number of rows, and the sums of :class:`Compared`."""

    rows: int = 0
    error: float = 0.0
    squares: float = 0.0
    total: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    cosine: float = 0.0
    active: int = 0

    def add(self, found: Compared) -> None:
        """Add the rows that were compared."""
        self.rows += len(found.error)
        self.error += float(found.error.sum(dtype=torch.float64))
        self.squares += float(found.squares.sum(dtype=torch.float64))
        self.total = self.total + found.total.cpu()
        self.cosine += float(found.cosine.sum(dtype=torch.float64))
        self.active += int(found.active.sum())

    @property
    def variance(self) -> float:
        """Σ‖x − mean‖² over the rows seen; 0 where it could be no more than rounding."""
        variance = self.squares - float(self.total.square().sum()) / max(self.rows, 1)
        return variance if variance > ROUNDING * self.squares else 0.0

    def fvu(self) -> float | None:
        """Return the fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean‖²; None where there is no variance."""
        return self.error / self.variance if self.variance > 0 else None

    def mse(self, scale: float) -> float:
        """Return the mean squared error of an element on the training scale (raw activations × ``scale``)."""
        return scale**2 * self.error / (self.rows * len(self.total))

    def l0(self) -> float:
        """Return the mean number of active latents in a row."""
        return self.active / self.rows

    def mean_cosine(self) -> float:
        """Return the mean cosine between a row and its reconstruction."""
        return self.cosine / self.rows


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

        ``active`` and ``own`` are as in :func:`compared`.
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


def ce_recovered(ce_ablated: float, ce_sae: float, ce_clean: float) -> float | None:
    """Return (CE_ablated − CE_sae) / (CE_ablated − CE_clean); None where the ablation does no harm.

    1 is as good as the model itself, 0 as bad as the ablation.
    """
    gap = ce_ablated - ce_clean
    return (ce_ablated - ce_sae) / gap if gap > 0 else None
