"""How well a reconstructor does on stored activations: any function of rows that returns rows and active counts."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from strata.measure.metrics import OUTLIER, Errors, Sums, compared
from strata.rows.batches import Rows
from strata.run.door import BadInput

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]  # raw rows -> reconstruction, active latents a row


class Encodes(Protocol):
    """What turns rows into sparse codes, as an SAE does."""

    @property
    def latents(self) -> int: ...
    def encode(self, x: Tensor) -> Any:
        """Codes of ``x`` (row, width), with a pattern."""
        ...


class Quality:
    """What is said of all rows reconstructed: mse on the training scale, fvu, fvu_inlier, l0 and cosine."""

    def __init__(self, scale: float, median_norm: float) -> None:
        self._scale, self._largest = scale, OUTLIER * median_norm
        self._everything, self._inliers = Errors(), Errors()

    def add(self, x: Tensor, output: Tensor, active: Tensor, own: Sums | None = None) -> None:
        """As :func:`strata.measure.metrics.compared`; ``x`` and its reconstruction float32."""
        found = compared(x, output, active, own)
        self._everything.add(found)
        self._inliers.add(found.of(found.squares.sqrt() <= self._largest, x))

    def values(self) -> dict[str, Any]:
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
    """The :class:`Quality` of a reconstructor on all rows of ``blocks``, in float32."""
    quality = Quality(scale, median_norm)
    for block in blocks:
        x = block.float()
        quality.add(x, *reconstruct(x))
    return quality.values()


@torch.inference_mode()
def firing_counts(sae: Encodes, blocks: Iterable[Tensor]) -> Tensor:
    """(latent,) how many of the rows each latent is active on."""
    counts = torch.zeros(sae.latents, dtype=torch.long)
    for block in blocks:
        counts += torch.bincount(sae.encode(block.float()).pattern.latents, minlength=sae.latents).cpu()
    return counts


@torch.inference_mode()
def outliers(blocks: Iterable[Tensor], tokens: Tensor, median_norm: float) -> dict[str, Any]:
    """The rows whose norm exceeds 3 × the median: number, share of rows and of variance, and their commonest tokens.

    ``tokens``: (row,) token ids, aligned with the rows of ``blocks``.
    """
    everything, out, found = Errors(), Errors(), []
    for block in blocks:
        x = block.float()
        large = x.norm(dim=1) > OUTLIER * median_norm
        rows = compared(x, x, torch.zeros(len(x)))
        everything.add(rows)
        out.add(rows.of(large, x))
        found.append(large)
    mean = everything.total / everything.rows
    apart = out.squares - 2 * float(out.total @ mean) + out.rows * float(mean @ mean) if out.rows else 0.0
    ids, counts = tokens[torch.cat(found)].unique(return_counts=True)
    order = counts.sort(descending=True, stable=True).indices[:10]
    return {
        "rows": out.rows,
        "share_of_rows": out.rows / everything.rows,
        "share_of_variance": apart / everything.variance if everything.variance > 0 else None,
        "tokens": [(int(ids[i]), int(counts[i])) for i in order],
    }


def check_held_out(rows: Rows, split: str) -> None:
    """Refuse a ``split``, validation or test, without variance to explain: an error could not be compared with it."""
    seen = Errors()
    for block in rows.blocks(*rows.split(split)):
        x = block.float()
        seen.add(compared(x, x, torch.zeros(len(x))))
        if seen.variance > 0:
            return
    what = f"has {seen.rows} row{'s' * (seen.rows != 1)}"
    same = "and one alone does not vary" if seen.rows == 1 else "all the same" if seen.rows else "and needs two"
    raise BadInput(
        f"the {split} split {what}, {same}: there is no variance of which an SAE could explain a share; bring more "
        f"documents, or raise fetch.corpus.{split}"
    )
