"""How good a reconstruction is. Sums over the whole set in float64; nothing is an average of averages."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

OUTLIER = 3.0  # a row is an outlier when its norm exceeds this times the layer's median norm


@dataclass
class Errors:
    """Running sums for rows x and reconstructions x̂ of some width."""

    rows: int = 0
    error: float = 0.0
    squares: float = 0.0
    total: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    cosine: float = 0.0
    active: int = 0

    def add(self, x: Tensor, reconstruction: Tensor, active: Tensor) -> None:
        """``x``, ``reconstruction``: (row, width); ``active``: (row,) active latents."""
        self.rows += len(x)
        self.error += float((x - reconstruction).square().sum(dtype=torch.float64))
        self.squares += float(x.square().sum(dtype=torch.float64))
        self.total = self.total + x.sum(0, dtype=torch.float64).cpu()
        self.cosine += float(torch.cosine_similarity(x, reconstruction, dim=1).sum())
        self.active += int(active.sum())

    @property
    def variance(self) -> float:
        """Σ‖x − mean‖² over the rows seen."""
        return self.squares - float(self.total.square().sum()) / max(self.rows, 1)

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
