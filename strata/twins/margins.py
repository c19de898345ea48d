"""By how much an SAE beats its twins on the same held-out documents, with intervals.

Both are measured on the same documents, and one draw of documents counts for both: a paired bootstrap. So what makes a
document hard for every SAE cancels out. Each metric is a ratio of sums over the drawn documents, as it is over all.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.evaluation.intervals import Measure, resampled, weights
from strata.measure import quality
from strata.measure.quality import OUTLIER, ce_recovered
from strata.rows.batches import Rows, blocks
from strata.splicing.held_out import Predictions
from strata.verdict.targets import WORSE

GROUPS = 1000  # at most so many groups of neighbouring documents are drawn, so that memory has a bound

Floats = NDArray[np.float64]
Values = dict[str, Floats]  # metric -> its value on each draw of documents, (draw,)


@dataclass(frozen=True)
class Groups:
    """Documents, of which neighbouring ones stand together where there are many. ``of``: (item,) the group of each."""

    of: NDArray[np.int64]
    count: int

    @classmethod
    def by(cls, document: NDArray[np.integer]) -> "Groups":
        """Group the items whose ``document``, (item,), is given."""
        documents, number = np.unique(document, return_inverse=True)
        count = min(len(documents), GROUPS)
        return cls(number * count // max(len(documents), 1), count)

    def sums(self, values: Floats) -> Floats:
        """Sum ``values`` (item, …) over the items of each group: (group, …)."""
        totals = np.zeros((self.count, *values.shape[1:]))
        np.add.at(totals, self.of, values)
        return totals

    def draws(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Draw (draw, group): how often each group comes. The first draw takes each once, and so gives the value."""
        return np.concatenate([np.ones((1, self.count), np.int64), weights(self.count, random)])


@torch.inference_mode()
def of_rows(
    candidates: Mapping[str, quality.Reconstruct],
    activations: Rows,
    test_document: NDArray[np.integer],
    random: np.random.Generator,
    device: torch.device,
) -> dict[str, Values]:
    """Compute mse, fvu, fvu_inlier and cosine of each candidate on draws of the test documents.

    ``test_document``: (row,) the document of each test row. ``device``: where the candidates are.
    """
    groups = Groups.by(test_document)
    group = torch.from_numpy(groups.of).to(device)
    largest = OUTLIER * activations.median_norm

    def summed(of: Tensor, columns: tuple[Tensor, ...]) -> Tensor:
        table = torch.stack(columns, 1).double()
        return torch.zeros(groups.count, len(columns), dtype=torch.float64, device=device).index_add_(0, of, table)

    # Sums over the rows of each group. Of x alone: their number, ‖x‖² and Σx, of all rows and of the inliers. Of each
    # candidate: ‖x − x̂‖², the same of the inliers, and the cosine.
    own = torch.zeros(groups.count, 4, dtype=torch.float64, device=device)
    totals = torch.zeros(2, groups.count, activations.width, dtype=torch.float64, device=device)
    errors = {name: torch.zeros(groups.count, 3, dtype=torch.float64, device=device) for name in candidates}
    first = 0
    for block in blocks(activations, *activations.split("test"), device):
        x, of = block.float(), group[first : first + len(block)]
        first += len(block)
        row_sums = quality.sums(x)
        inlier = (row_sums.squares.sqrt() <= largest).double()
        own += summed(of, (torch.ones_like(inlier), row_sums.squares, inlier, inlier * row_sums.squares))
        totals[0].index_add_(0, of, x.double())
        totals[1].index_add_(0, of, x.double() * inlier[:, None])
        for name, reconstruct in candidates.items():
            rows = quality.compared(x, *reconstruct(x), row_sums)
            errors[name] += summed(of, (rows.error, rows.error * inlier, rows.cosine))

    draws = groups.draws(random)
    rows, squares, inliers, inlier_squares = (draws @ own.cpu().numpy()).T
    variance = squares - np.square(draws @ totals[0].cpu().numpy()).sum(1) / rows
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may hold no inliers, or none that vary
        inlier_variance = inlier_squares - np.square(draws @ totals[1].cpu().numpy()).sum(1) / inliers
        values: dict[str, Values] = {}
        for name, table in errors.items():
            error, inlier_error, cosine = (draws @ table.cpu().numpy()).T
            values[name] = {
                "mse": activations.scale**2 * error / (rows * activations.width),
                "fvu": error / variance,
                "fvu_inlier": inlier_error / inlier_variance,
                "cosine": cosine / rows,
            }
    return values


def of_predictions(predictions: Predictions, candidates: list[str], random: np.random.Generator) -> dict[str, Values]:
    """Compute the ce metrics of each candidate on draws of the documents that have predicted tokens."""
    groups = Groups.by(predictions.document)
    draws = groups.draws(random)
    sums = {name: draws @ groups.sums(loss.double().numpy()) for name, loss in predictions.losses.items()}  # (draw, 2)
    tokens = draws @ groups.sums(np.ones(len(predictions.document)))

    clean, zero, mean = (sums[name][:, 0] / tokens for name in ("clean", "zero", "mean"))
    values: dict[str, Values] = {}
    for name in candidates:
        ce, kl = (sums[name] / tokens[:, None]).T
        values[name] = {
            "delta_ce": ce - clean,
            "kl": kl,
            "ce_sae": ce,
            "ce_recovered": _recovered(zero, ce, clean),
            "ce_recovered_mean": _recovered(mean, ce, clean),
        }
    return values


def _recovered(ablated: Floats, ce: Floats, clean: Floats) -> Floats:
    """Compute `ce_recovered` on each draw, (draw,); NaN where the ablation does no harm."""
    shares = [ce_recovered(*numbers) for numbers in zip(ablated.tolist(), ce.tolist(), clean.tolist(), strict=True)]
    return np.array([np.nan if share is None else share for share in shares])


def margins(sae: Values, twin: Values) -> dict[str, Measure]:
    """Return by how much ``sae`` is better than ``twin`` in each metric, with the interval of 95 % of the draws.

    The margin is the difference of the two, above 0 where the SAE is better. A metric that does not apply is left out.
    """
    differences = {name: WORSE[name] * (twin[name] - sae[name]) for name in sae}
    measured = {name: resampled(float(drawn[0]), drawn[1:]) for name, drawn in differences.items()}
    return {name: margin for name, margin in measured.items() if margin["value"] is not None}
