"""The latents that their explanations fit best and worst, with the contexts that they fire on."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from stages.readable import Row, above_chance
from stages.report.latents import Layer, context, grouped, rows

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
    """Those of ``ids`` that are explained best and worst above chance, the more important first where they tie.

    Latents whose explanation could not be scored are in neither; of few latents none is in both.
    """
    scored = [latent for latent in ids if latent in notes and notes[latent]["balanced_accuracy"] is not None]
    order = sorted(scored, key=lambda latent: -above_chance(notes[latent]))
    best = order[: min(each, (len(order) + 1) // 2)]
    rest = sorted(order[len(best) :], key=lambda latent: (above_chance(notes[latent]), scored.index(latent)))
    return best, rest[:each]


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
