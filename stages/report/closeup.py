"""Choose the latents whose explanations are best and worst, and show the contexts on which they fire."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from stages.report.judged import verdict
from stages.report.latents import context
from stages.report.layer import EACH, Layer, grouped, rows, worst
from strata.pages.readable import Row

CONTEXTS = 3  # of a latent


class Shown(NamedTuple):
    """One latent: ``row`` of the statistics, ``note``, its best explanation, and its strongest ``contexts``.

    ``told``: whether the explanation tells contexts apart better than chance.
    """

    row: Row
    note: Row
    told: bool
    contexts: list[Markup]


class Closeup(NamedTuple):
    """The latents of a layer whose explanations predict best, and worst, where they fire."""

    layer: int
    best: list[Shown]
    worst: list[Shown]


def best(ids: Sequence[int], notes: Mapping[int, Row], each: int = EACH) -> list[int]:
    """Return those of ``ids`` whose explanations score best, of equal scores in the order of ``ids``."""
    scores = {latent: notes[latent]["balanced_accuracy"] for latent in ids if latent in notes}
    return sorted((latent for latent, score in scores.items() if score is not None), key=lambda j: -scores[j])[:each]


def closeup(layer: Layer) -> Closeup | None:
    """Show both ends of a layer. Return None if no explanation was scored."""
    last = [latent for latent in worst(layer.statistics, layer.notes) if latent in layer.ids]
    first = best([latent for latent in layer.ids if latent not in last], layer.notes)
    if not first:
        return None
    examples = rows(layer.latents, "examples", [*first, *last])

    def show(latent: int) -> Shown:
        row = layer.statistics[latent]
        top = grouped(examples[latent]).get("top", [])[:CONTEXTS]
        texts = [context(example, row["max"], layer.meta["unit"]) for example in top]
        note = layer.notes[latent]
        return Shown(row, note, verdict(note).told is True, texts)

    return Closeup(layer.meta["layer"], [show(latent) for latent in first], [show(latent) for latent in last])
