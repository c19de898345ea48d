"""Measure reconstructors on the held-out text of a layer: the SAE that train makes, and the smaller one of merge."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.lm.model import Hook, LanguageModel
from strata.measure import quality
from strata.rows.batches import Rows, blocks, check_held_out
from strata.splicing import splice


class Texts(Protocol):
    """The contexts from which the rows were extracted, as extract's reader opens them."""

    def split(self, name: str) -> tuple[int, int]:
        """Return the first context of train, validation or test, and the one after its last."""
        ...

    def read(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and documents of the contexts ``first`` to ``end`` - 1, each (context, position).

        The document is -1 where a position is no row.
        """
        ...


class Predictions(NamedTuple):
    """The predicted tokens: their ``document``, (prediction,), and variant -> ce and kl of each, (prediction, 2).

    Variants are the candidates, and the model with zeros, with the mean, and untouched ("clean").
    """

    document: NDArray[np.integer]
    losses: dict[str, Tensor]


@torch.inference_mode()
def held_out(
    candidates: Mapping[str, quality.Reconstruct],
    activations: Rows,
    contexts: Texts,
    hook: Hook,
    lm: LanguageModel | None,
    ce_tokens: int,
    device: torch.device,
) -> tuple[dict[str, dict[str, Any]], Predictions]:
    """Measure each candidate on the test rows: mse, fvu, fvu_inlier, l0, cosine and the ce metrics.

    ``candidates``: reconstructors by name. The ce metrics are measured on whole contexts, on the first ``ce_tokens``
    held-out tokens and the rest of the last context. Without an ``lm`` they are None. ``device``: that of the
    candidates, where the rows go.

    Returns the metrics by candidate and name, and each prediction that the ce metrics are means of; there are none
    without an ``lm`` or ``ce_tokens``. Raises BadInput where the test rows do not vary, so that an fvu would mean
    nothing.
    """
    first, end = activations.split("test")
    check_held_out(activations, "test")
    scale, median_norm = activations.scale, activations.median_norm
    errors = {
        name: quality.reconstruction(reconstruct, blocks(activations, first, end, device), scale, median_norm)
        for name, reconstruct in candidates.items()
    }
    predictions = _predictions(candidates, activations, contexts, hook, lm, ce_tokens)
    if not predictions.losses:
        cross_entropies: dict[str, dict[str, Any]] = {name: dict.fromkeys(splice.METRICS) for name in candidates}
    else:
        verdicts = splice.means(predictions.losses)
        cross_entropies = {name: splice.scores(verdicts, name) for name in candidates}
    return {name: metrics | cross_entropies[name] for name, metrics in errors.items()}, predictions


def _predictions(
    candidates: Mapping[str, quality.Reconstruct],
    activations: Rows,
    contexts: Texts,
    hook: Hook,
    lm: LanguageModel | None,
    budget: int,
) -> Predictions:
    """Measure each prediction on the first contexts with ``budget`` predicted tokens in all."""
    if lm is None or budget == 0:
        return Predictions(np.empty(0, np.int64), {})

    # As many contexts as are needed, or all where the budget is larger than the split. A token is predicted where it is
    # a row; the first of a context never is.
    tokens, documents = contexts.read(*contexts.split("test"))
    is_row = documents >= 0
    enough = int(np.searchsorted(is_row[:, 1:].sum(1).cumsum(), budget)) + 1
    tokens, documents, is_row = tokens[:enough], documents[:enough], is_row[:enough]

    # The candidates, and the two ablations that they are compared with. Train has the mean among its candidates, as a
    # control under the same name; it is not run twice.
    variants: dict[str, splice.Replace] = {
        name: lambda x, reconstruct=reconstruct: reconstruct(x.float())[0] for name, reconstruct in candidates.items()
    }
    variants["zero"] = lambda x: torch.zeros_like(x)
    variants.setdefault("mean", lambda x: activations.mean.to(x.device).expand_as(x))

    ids, kept = torch.from_numpy(tokens), torch.from_numpy(is_row)
    losses = splice.by_prediction(lm, ids, kept, hook, activations.layer, variants)
    return Predictions(documents[:, 1:][is_row[:, 1:]], losses)
