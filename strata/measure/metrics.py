"""How good a reconstruction is. Sums over the whole set in float64; nothing is an average of averages."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-12  # of a sum in float64
OUTLIER = 3.0  # a row is an outlier when its norm exceeds this times the layer's median norm


@dataclass(frozen=True)
class Compared:
    """Rows x and their reconstructions x̂, row by row: ‖x − x̂‖², ‖x‖², their cosine and the active latents, (row,) each.
    ``total``: (width,) Σx, float64."""

    error: Tensor
    squares: Tensor
    cosine: Tensor
    active: Tensor
    total: Tensor

    def of(self, kept: Tensor, x: Tensor) -> "Compared":
        """Those of the rows ``kept`` (row,) bool, of all rows ``x``; quick where that is most of them."""
        rows = (self.error[kept], self.squares[kept], self.cosine[kept], self.active[kept])
        return Compared(*rows, self.total - x[~kept].sum(0, dtype=torch.float64))


class Sums(NamedTuple):
    """Of rows alone, in float64, because their variance is a small difference of large numbers: ‖x‖² (row,), Σx
    (width,)."""

    squares: Tensor
    total: Tensor


def sums(x: Tensor) -> Sums:
    """``x``: (row, width)."""
    x = x.double()
    return Sums(torch.linalg.vecdot(x, x), x.sum(0))


def compared(x: Tensor, reconstruction: Tensor, active: Tensor, own: Sums | None = None) -> Compared:
    """``x``, ``reconstruction``: (row, width); ``active``: (row,) active latents; ``own``: :func:`sums` of ``x``."""
    dot, (squares, total) = torch.linalg.vecdot, own or sums(x)
    difference = x - reconstruction
    norms = (squares * dot(reconstruction, reconstruction)).sqrt().clamp(min=1e-30)
    return Compared(dot(difference, difference), squares, dot(x, reconstruction) / norms, active, total)


@dataclass
class Errors:
    """Running sums for rows x and reconstructions x̂ of some width."""

    rows: int = 0
    error: float = 0.0
    squares: float = 0.0
    total: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    cosine: float = 0.0
    active: int = 0

    def add(self, found: Compared) -> None:
        """Some more rows."""
        self.rows += len(found.error)
        self.error += float(found.error.sum(dtype=torch.float64))
        self.squares += float(found.squares.sum(dtype=torch.float64))
        self.total = self.total + found.total.cpu()
        self.cosine += float(found.cosine.sum(dtype=torch.float64))
        self.active += int(found.active.sum())

    @property
    def variance(self) -> float:
        """Σ‖x − mean‖² over the rows seen; what is no more than rounding is 0."""
        found = self.squares - float(self.total.square().sum()) / max(self.rows, 1)
        return found if found > ROUNDING * self.squares else 0.0

    def fvu(self) -> float | None:
        """Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖². None where there is no variance."""
        return self.error / self.variance if self.variance > 0 else None

    def mse(self, scale: float) -> float:
        """Mean squared error of an element on the training scale (raw activations × ``scale``)."""
        return scale**2 * self.error / (self.rows * len(self.total))

    def l0(self) -> float:
        """Mean number of active latents a row."""
        return self.active / self.rows

    def mean_cosine(self) -> float:
        return self.cosine / self.rows


def ce_recovered(ce_ablated: float, ce_sae: float, ce_clean: float) -> float | None:
    """(CE_ablated − CE_sae) / (CE_ablated − CE_clean): 1 is as good as the model itself, 0 as bad as the ablation."""
    gap = ce_ablated - ce_clean
    return (ce_ablated - ce_sae) / gap if gap > 0 else None
