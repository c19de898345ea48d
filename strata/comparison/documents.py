"""Measure SAEs on the held-out rows of one layer, document by document, so that two groups of them can be compared.

For fvu_inlier and l0, sums over the documents divided by the sums of their weights are the numbers that train reports.
delta_ce is of other tokens than train's: of equally many of each document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.comparison.paired import Items, Metric, Side
from strata.comparison.predictions import delta_ce
from strata.lm.model import Hook, LanguageModel
from strata.measure import quality
from strata.measure.quality import OUTLIER
from strata.rows import batches
from strata.rows.batches import Rows
from strata.run.door import BadInput
from strata.sae.sae import SAE
from strata.splicing.held_out import Texts

TOKENS = 1536  # that a language model predicts
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """The SAEs of one side, which differ in their seed alone. ``seeds``: in the order of ``saes``, where known."""

    saes: Sequence[SAE]
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Predicted:
    """By which text a language model predicts with SAEs in place: about ``tokens`` tokens of the test ``contexts``."""

    lm: LanguageModel
    contexts: Texts
    hook: Hook
    tokens: int = TOKENS


def compared(
    a: Group, b: Group, rows: Rows, row_document: NDArray[np.integer], predicted: Predicted | None = None
) -> list[Metric]:
    """Measure both groups on the test rows: fvu_inlier, l0 and delta_ce by document, and dead on all rows.

    ``row_document``: (row,) the document of each test row. ``predicted``: None where there is no language model, and so
    no delta_ce. Raises BadInput where the test rows do not vary, or an SAE is of another width.
    """
    batches.check_held_out(rows, "test")
    for sae in (*a.saes, *b.saes):
        if sae.width != rows.width:
            raise BadInput(f"an SAE is of width {sae.width}, but the rows are of width {rows.width}")

    document = torch.from_numpy(np.unique(row_document, return_inverse=True)[1])
    weights = _weights(rows, document)
    items: Items | None = "documents" if int(document.max()) > 0 else None

    of_a, of_b = ([_sums(sae, rows, document) for sae in group.saes] for group in (a, b))

    def side(name: str, sums: Sequence[dict[str, Floats]], group: Group) -> Side:
        return Side(np.stack([of_sae[name] for of_sae in sums]), weights[name], group.seeds)

    def dead(group: Group) -> Side:
        return Side(np.array([[_dead(sae, rows)] for sae in group.saes]), np.ones(1), group.seeds)

    by_document = [Metric(name, True, side(name, of_a, a), side(name, of_b, b), items) for name in weights]
    if predicted is not None:
        by_document.append(_predictions(a, b, rows.layer, predicted))
    step = 1 / min(sae.latents for sae in (*a.saes, *b.saes))
    return [*by_document, Metric("dead", True, dead(a), dead(b), step=step)]


def _predictions(a: Group, b: Group, layer: int, by: Predicted) -> Metric:
    """Return delta_ce of both groups."""
    (of_a, of_b), weights = delta_ce([a.saes, b.saes], by.contexts, by.hook, layer, by.lm, by.tokens)
    sides = Side(of_a, weights, a.seeds), Side(of_b, weights, b.seeds)
    return Metric("delta_ce", True, *sides, "documents" if len(weights) > 1 else None)


@torch.inference_mode()
def _weights(rows: Rows, document: Tensor) -> dict[str, Floats]:
    """Return what the sums of each metric are divided by, (document,).

    fvu_inlier: Σ‖x − mean‖² over the inliers of a document, with the mean of all inliers; l0: its rows.
    """
    largest = OUTLIER * rows.median_norm
    total, count = torch.zeros(rows.width, dtype=torch.float64), 0
    for block in rows.blocks(*rows.split("test")):
        x = block.double()
        inliers = x[x.norm(dim=1) <= largest]
        total += inliers.sum(0)
        count += len(inliers)
    mean = total / max(count, 1)

    documents = int(document.max()) + 1
    variance = torch.zeros(documents, dtype=torch.float64)
    for block, of_block in _numbered(rows, document):
        x = block.double()
        is_inlier = x.norm(dim=1) <= largest
        variance.index_add_(0, of_block[is_inlier], (x[is_inlier] - mean).square().sum(1))
    return {"fvu_inlier": variance.numpy(), "l0": torch.bincount(document, minlength=documents).double().numpy()}


@torch.inference_mode()
def _sums(sae: SAE, rows: Rows, document: Tensor) -> dict[str, Floats]:
    """Sum over the test rows of each document, (document,): squared errors of inliers, and active latents."""
    largest = OUTLIER * rows.median_norm
    error, active = (torch.zeros(int(document.max()) + 1, dtype=torch.float64) for _ in range(2))
    for block, of_block in _numbered(rows, document):
        x = block.float()
        reconstruction, count = sae.reconstruct(x.to(sae.b_dec.device))
        squares = (x - reconstruction.cpu()).square().sum(1, dtype=torch.float64)
        is_inlier = x.double().norm(dim=1) <= largest
        error.index_add_(0, of_block[is_inlier], squares[is_inlier])
        active.index_add_(0, of_block, count.cpu().double())
    return {"fvu_inlier": error.numpy(), "l0": active.numpy()}


def _numbered(rows: Rows, document: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the test rows in blocks, each with the numbers of its documents."""
    first = 0
    for block in rows.blocks(*rows.split("test")):
        yield block, document[first : first + len(block)]
        first += len(block)


def _dead(sae: SAE, rows: Rows) -> float:
    """Return the share of the latents that are silent on all rows of the folder, training rows too."""
    _, end = rows.split("test")
    counts = quality.firing_counts(sae, batches.blocks(rows, 0, end, sae.b_dec.device))
    return float((counts == 0).double().mean())
