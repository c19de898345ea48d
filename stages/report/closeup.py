"""Choose the latents whose explanations are best and worst, and show the contexts on which they fire."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from stages.report.latents import Layer, context, grouped, rows
from strata.pages.readable import Row

EACH = 3  # latents at either end of a layer
CONTEXTS = 3  # of a latent


class Shown(NamedTuple):
    """One latent: ``row`` of the statistics, ``note``, its best explanation, and its strongest ``contexts``."""

    row: Row
    note: Row
    contexts: list[Markup]


class Closeup(NamedTuple):
    """The latents of a layer whose explanations predict best, and worst, where they fire."""

    layer: int
    best: list[Shown]
    worst: list[Shown]


def ends(ids: Sequence[int], notes: dict[int, Row], each: int = EACH) -> tuple[list[int], list[int]]:
    """Return those of ``ids`` whose explanations score best, and worst. Of equal scores the more important comes first.

    Only the score counts, not its distance from chance: a latent's chance is the score of one other latent's
    explanation, which may happen to fit. Latents whose explanation could not be scored are in neither list, and no
    latent is in both, however few there are.
    """
    scores = {latent: notes[latent]["balanced_accuracy"] for latent in ids if latent in notes}
    scored = [latent for latent, score in scores.items() if score is not None]
    best = sorted(scored, key=lambda latent: -scores[latent])[: min(each, (len(scored) + 1) // 2)]
    rest = (latent for latent in scored if latent not in best)
    return best, sorted(rest, key=scores.__getitem__)[:each]


def closeup(layer: Layer) -> Closeup | None:
    """Show both ends of a layer. Return None if no explanation was scored."""
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
