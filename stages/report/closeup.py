"""The latents that their explanations fit best and worst, with the contexts that they fire on."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from stages.report.latents import Layer, context, grouped, rows
from strata.pages.readable import Row

EACH = 3  # latents at either end, a layer
CONTEXTS = 3  # of each


class Shown(NamedTuple):
    """One latent: its row of the statistics, its best explanation, its strongest contexts."""

    row: Row
    note: Row
    contexts: list[Markup]


class Closeup(NamedTuple):
    """Of a layer, the latents whose explanations tell best, and worst, where they fire."""

    layer: int
    best: list[Shown]
    worst: list[Shown]


def ends(ids: Sequence[int], notes: dict[int, Row], each: int = EACH) -> tuple[list[int], list[int]]:
    """Those of ``ids`` whose explanations do best and worst, the more important first where they tie.

    By the score alone: a latent's chance is the score of one other latent's explanation, which may happen to fit.
    Latents whose explanation could not be scored are in neither; of few latents none is in both.
    """
    scores = {latent: notes[latent]["balanced_accuracy"] for latent in ids if latent in notes}
    scored = [latent for latent, score in scores.items() if score is not None]
    best = sorted(scored, key=lambda latent: -scores[latent])[: min(each, (len(scored) + 1) // 2)]
    rest = (latent for latent in scored if latent not in best)
    return best, sorted(rest, key=scores.__getitem__)[:each]


def closeup(layer: Layer) -> Closeup | None:
    """Both ends of a layer; None if no explanation was scored."""
    best, worst = ends(layer.ids, layer.notes)
    if not best:
        return None
    examples = rows(layer.latents, "examples", [*best, *worst])

    def show(latent: int) -> Shown:
        row = layer.statistics[latent]
        top = grouped(examples[latent]).get("top", [])[:CONTEXTS]
        texts = [context(example, row["max"], layer.meta["unit"]) for example in top]
        return Shown(row, layer.notes[latent], texts)

    return Closeup(layer.meta["layer"], [show(latent) for latent in best], [show(latent) for latent in worst])
