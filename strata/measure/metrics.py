"""Metrics of a reconstruction. Sums over the whole set are in float64, and nothing is an average of averages."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-12  # the relative error that a sum in float64 may have
OUTLIER = 3.0  # a row is an outlier when its norm exceeds this times the layer's median norm


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


def ce_recovered(ce_ablated: float, ce_sae: float, ce_clean: float) -> float | None:
    """Return (CE_ablated − CE_sae) / (CE_ablated − CE_clean); None where the ablation does no harm.

    1 is as good as the model itself, 0 as bad as the ablation.
    """
    gap = ce_ablated - ce_clean
    return (ce_ablated - ce_sae) / gap if gap > 0 else None
