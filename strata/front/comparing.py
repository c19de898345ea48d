"""Is A better than B? One call on two groups of SAEs that differ in their seed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from strata.comparison import documents, paired, words
from strata.comparison.documents import Group, Predicted
from strata.front.activations import LayerActivations
from strata.front.files import sae_of
from strata.run import door
from strata.run.door import BadInput


@dataclass(frozen=True)
class Compared:
    """Which of two groups is better.

    ``verdict``: one or two sentences. ``table``: a row for each metric, with what :class:`strata.comparison.paired.Row`
    says of it: ``verdict`` (better: A is better), ``difference`` (A - B), its interval ``low`` to ``high``, and how
    many ``more_seeds`` or ``more_items`` (documents) would decide.
    """

    verdict: str
    table: pd.DataFrame = field(repr=False)


def compare(a: Any, b: Any, rows: LayerActivations, ce_tokens: int = documents.TOKENS) -> Compared:
    """Say whether the SAEs ``a`` are better than the SAEs ``b`` on the test rows of ``rows``, metric by metric.

    ``a`` and ``b``: lists of what :func:`strata.train`, :func:`strata.load` or :func:`strata.merge` gives, trained with
    different seeds and otherwise alike. Where all of them are of :func:`strata.train`, SAEs of the same seed are
    compared in pairs. ``rows``: those that they were trained on, or others of the same layer that none has seen.
    ``ce_tokens``: tokens that the language model of ``rows`` predicts with each SAE in place; 0: none.

    One SAE on a side gives numbers, but never a verdict. Raises BadInput where an SAE does not fit the rows, or is on
    both sides.

    >>> found = strata.compare([k32_0, k32_1, k32_2], [k64_0, k64_1, k64_2], acts[6])     # doctest: +SKIP
    >>> found.verdict                                                                     # doctest: +SKIP
    'A trade: A is better in l0, B in fvu_inlier and delta_ce.'
    """
    door.of_kind("rows", rows, LayerActivations, "it must be what strata.activations or strata.store gives")
    door.whole("ce_tokens", ce_tokens, 0)
    of_a, of_b = _group("a", a), _group("b", b)
    if any(one is other for one in of_a.saes for other in of_b.saes):
        raise BadInput("a and b have an SAE in common, so that nothing differs")

    hook: Any = rows.hook
    predicted = Predicted(rows.lm, rows.contexts, hook, ce_tokens) if rows.lm is not None and ce_tokens else None
    row_document = rows.contexts.rows("test")[1]
    found = paired.compare(documents.compared(of_a, of_b, rows, row_document, predicted))
    remedy = words.remedy(len(of_a.saes), len(of_b.saes), "with another seed")
    return Compared(words.verdict(found, remedy), pd.DataFrame([asdict(row) for row in found]))


def _group(name: str, value: Any) -> Group:
    """Return the SAEs of a list, or of one that is in no list, and their seeds where all of them are known."""
    values = list(value) if isinstance(value, Sequence | np.ndarray) else [value]
    if not values:
        raise BadInput(f"{name} is empty; it must be a list of SAEs")
    known = [origin["seed"] for one in values if "seed" in (origin := getattr(one, "origin", {}))]
    return Group([sae_of(one) for one in values], tuple(known) if len(known) == len(values) else None)
