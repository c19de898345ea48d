"""The latents' pages: one a latent, an index a layer, an index of the layers. Static: no server, no request elsewhere.

What a text holds is never markup: it is escaped in a page, which runs no script at all, and in an index's data.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from typing import NamedTuple

from markupsafe import Markup

from stages.report.causes import Causes
from stages.report.templates import FOLDER, environment
from strata.interpretation.read import Latents
from strata.pages.readable import (
    SCORES,
    Row,
    best_first,
    by_label,
    excerpt,
    explained,
    inert,
    inline,
    marked,
    number,
    shade,
    visible,
)

ASSETS = ("latents.css", "latents.js")
SHADES = 10  # of the colour of a token, from hardly active to the latent's maximum
GROUPS = {  # kind of example -> heading, what it is, how many are shown before one asks for more
    "top": ("Strongest", "where it is most active, one context a document", 12),
    "decile": ("From strong to weak", "drawn from each tenth of its activations, the strongest tenth first", 20),
    "random": ("At random", "drawn from all its activations, none of them above", 6),
    "near": ("Near misses", "texts like the strongest ones, on which it is silent", 4),
    "zero": ("Silent", "drawn from the rest of the corpus: it is 0 on all of it", 3),
}


class Layer(NamedTuple):
    """What is shown of one layer. ``statistics``: a row a latent. ``ids``: the latents that have a page, the most
    important first. ``notes``: latent -> its best explanation."""

    latents: Latents
    statistics: list[Row]
    ids: list[int]
    notes: dict[int, Row]

    @property
    def meta(self) -> Row:
        return self.latents.meta

    @property
    def living(self) -> int:
        return sum(not row["dead"] for row in self.statistics)


def read_layer(latents: Latents, pages: int, selected: Sequence[int] = ()) -> Layer:
    """Choose a layer's pages: the ``pages`` most important latents, and those that a later stage ``selected``."""
    table = latents.table("statistics")
    assert table is not None
    statistics = table.to_pylist()
    return Layer(latents, statistics, chosen(statistics, pages, selected), _notes(latents))


# --- which latents, and what is known of them ---------------------------------------------------------------------


def chosen(statistics: Sequence[Row], pages: int, selected: Sequence[int] = ()) -> list[int]:
    """The latents that get a page: the ``pages`` most important, those that the filters kept before the other living
    ones, then what a later stage ``selected``. In order of importance."""
    living = [row for row in statistics if not row["dead"]]
    first = sorted(living, key=lambda row: (not row["kept"], -row["importance"], row["latent"]))[:pages]
    wanted = {row["latent"] for row in first} | {latent for latent in selected if latent < len(statistics)}
    return sorted(wanted, key=lambda latent: (-statistics[latent]["importance"], latent))


def rows(latents: Latents, name: str, ids: Sequence[int]) -> dict[int, list[Row]]:
    """Latent -> its rows of a table, in the table's order; empty where the table is not there."""
    table = latents.table(name, filters=[("latent", "in", list(ids))]) if ids else None
    found: dict[int, list[Row]] = {latent: [] for latent in ids}
    for row in [] if table is None else table.to_pylist():
        found[row["latent"]].append(row)
    return found


def grouped(examples: Sequence[Row]) -> dict[str, list[Row]]:
    """Kind -> examples, the strongest first; the deciles are one kind."""
    found: dict[str, list[Row]] = {kind: [] for kind in GROUPS}
    for row in examples:
        found[row["kind"].partition("-")[0]].append(row)
    return {
        kind: sorted(group, key=lambda row: (-_tenth(row), -row["value"] * (kind != "near"), row["rank"]))
        for kind, group in found.items()
        if group
    }


def _tenth(row: Row) -> int:
    return int(row["kind"].partition("-")[2] or 0)


# --- pieces of markup ---------------------------------------------------------------------------------------------


@cache
def _plain(piece: str) -> str:
    return escape(inline(piece))


@cache
def _marked(piece: str) -> tuple[str, str]:
    space, word = marked(piece)
    return space, escape(word)


def context(example: Row, strongest: float, unit: str = "token") -> Markup:
    """A window's text, every token on which the latent is active marked by how much of ``strongest`` it reaches; of a
    whole document there is nothing to point at."""
    if unit == "document":
        return Markup(_plain(example["pieces"][0]))
    return tokens(example["pieces"], example["values"], strongest, example["position"] - example["first"])


def tokens(pieces: Sequence[str], values: Sequence[float], strongest: float, peak: int | None = None) -> Markup:
    """The same of any tokens."""
    parts = []
    for place, (piece, value) in enumerate(zip(pieces, values, strict=True)):
        if value > 0:
            space, word = _marked(piece)
            here = " peak" if place == peak else ""
            parts.append(
                f'{space}<mark class="a{shade(value, strongest, SHADES)}{here}" data-v="{number(value)}">{word}</mark>'
            )
        else:
            parts.append(_plain(piece))
    return Markup("".join(parts).lstrip(" "))


def histogram(counts: Sequence[int], edges: Sequence[float], mean: float, unit: str = "token") -> Markup:
    """How often the latent takes a value, as bars over a logarithmic axis, the mean as a dashed line."""
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return Markup("")
    first, end = filled[0], filled[-1] + 1
    counts, edges = counts[first:end], edges[first : end + 1]
    width, height, foot = 320.0, 96.0, 16.0
    step, tallest = width / len(counts), max(counts)
    bars = [
        f'<rect x="{place * step + 0.5:.1f}" y="{height - (tall := max(1.0, 82 * count / tallest)):.1f}" '
        f'width="{max(step - 1, 0.6):.1f}" height="{tall:.1f}"><title>{number(low)} – {number(high)}: '
        f"{number(count)} {unit}s</title></rect>"
        for place, (count, low, high) in enumerate(zip(counts, edges, edges[1:], strict=False))
        if count
    ]
    place = min(max(bisect_left(edges, mean) - 1, 0), len(counts) - 1)
    low, high = edges[place], edges[place + 1]
    at = step * (place + (mean - low) / (high - low))
    say = f"Histogram of its activations from {number(edges[0])} to {number(edges[-1])}, mean {number(mean)}"
    anchor = "end" if at > width * 0.6 else "start"
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {width:.0f} {height + foot:.0f}" role="img" aria-label="{say}">'
        f"{''.join(bars)}"
        f'<line x1="0" y1="{height}" x2="{width:.0f}" y2="{height}"/>'
        f'<line class="mean" x1="{at:.1f}" y1="4" x2="{at:.1f}" y2="{height}"/>'
        f'<text x="{at + (-4 if anchor == "end" else 4):.1f}" y="12" text-anchor="{anchor}">mean {number(mean)}</text>'
        f'<text x="0" y="{height + 13}">{number(edges[0])}</text>'
        f'<text x="{width:.0f}" y="{height + 13}" text-anchor="end">{number(edges[-1])}</text></svg>'
    )


# --- the files ----------------------------------------------------------------------------------------------------


def site(layers: Sequence[Layer], causes: Causes) -> Iterator[tuple[str, str]]:
    """The whole folder `reports/latents/`: path in it -> text."""
    for name in ASSETS:
        yield name, (FOLDER / name).read_text(encoding="utf-8")
    yield "index.html", environment().get_template("layers.html.j2").render(layers=layers)
    for layer in layers:
        number = layer.meta["layer"]
        yield f"{number}/index.html", index(layer)
        for latent, page in latent_pages(layer, causes):
            yield f"{number}/{latent}.html", page


def _notes(latents: Latents) -> dict[int, Row]:
    """Latent -> its best explanation."""
    table = latents.table("explanations")
    return {latent: rows[0] for latent, rows in explained(table.to_pylist() if table else []).items()}


def latent_pages(layer: Layer, causes: Causes) -> Iterator[tuple[int, str]]:
    """Each latent that has a page, and it."""
    template = environment().get_template("latent.html.j2")
    latents, statistics, ids, notes = layer
    ranks = _ranks(statistics)
    names = ("examples", "tokens", "logits", "enrichment", "explanations", "rules", "neighbours")
    tables = {name: rows(latents, name, ids) for name in names}
    have = set(ids)
    for place, latent in enumerate(ids):
        row = statistics[latent]
        of = {name: table[latent] for name, table in tables.items()}
        groups = grouped(of["examples"])
        yield (
            latent,
            template.render(
                meta=latents.meta,
                row=row,
                rank=ranks.get(latent),
                living=len(ranks),
                before=ids[place - 1] if place else None,
                after=ids[place + 1] if place + 1 < len(ids) else None,
                note=notes.get(latent),
                explanations=best_first(of["explanations"]),
                scores=SCORES,
                rules=of["rules"],
                groups=[(kind, *GROUPS[kind], group) for kind, group in groups.items()],
                context=lambda example, top=row["max"]: context(example, top, latents.meta["unit"]),
                histogram=histogram(
                    row["histogram"], latents.meta["histogram_edges"], row["mean"], latents.meta["unit"]
                ),
                lens={side: [r for r in of["logits"] if r["side"] == side] for side in ("promoted", "suppressed")},
                tokens=of["tokens"],
                labels=by_label(of["enrichment"]),
                neighbours=of["neighbours"],
                notes=notes,
                have=have,
                **causes.of(latents.meta["layer"], latent),
                tokens_of=lambda found, top=row["max"]: tokens(found["pieces"], found["values"], top),
            ),
        )


def _ranks(statistics: Sequence[Row]) -> dict[int, int]:
    """Living latent -> its place by importance, from 1."""
    living = (row for row in statistics if not row["dead"])
    order = sorted(living, key=lambda row: (-row["importance"], row["latent"]))
    return {row["latent"]: place for place, row in enumerate(order, 1)}


def index(layer: Layer) -> str:
    """All latents of a layer, to search and sort: their data stand in the file, column by column."""
    latents, statistics, ids, notes = layer
    states = ["kept", *sorted({_state(row) for row in statistics} - {"kept", "dead"}), "dead"]
    count = dict.fromkeys(states, 0)
    data: Row = {name: [] for name in ("text", "score", "chance", "tokens", "context", "state")}
    data |= {name: [_short(row[name]) for row in statistics] for name in ("density", "mean", "max", "importance")}
    first, best = _first_tokens(latents), _best_contexts(latents)
    for row in statistics:
        note = notes.get(row["latent"], {})
        state = _state(row)
        count[state] += 1
        data["text"].append(note.get("text") or "")
        data["score"].append(_short(note.get("balanced_accuracy")))
        data["chance"].append(_short(note.get("balanced_accuracy_chance")))
        data["tokens"].append(first.get(row["latent"], ""))
        data["context"].append(best.get(row["latent"], 0))
        data["state"].append(states.index(state))
    return (
        environment()
        .get_template("latents.html.j2")
        .render(
            layer=layer,
            states=[(place, state, count[state]) for place, state in enumerate(states) if count[state]],
            data=inert({"layer": latents.meta["layer"], "states": states, "pages": ids, **data}),
        )
    )


def _state(row: Row) -> str:
    """What the filters said of a latent: dead, kept, or why it was dropped."""
    return "dead" if row["dead"] else (row["dropped"] or "kept").replace("_", " ")


def _short(value: float | None) -> float | None:
    """As many digits as the index shows."""
    return None if value is None else float(f"{value:.4g}")


def _first_tokens(latents: Latents) -> dict[int, str]:
    """Latent -> its three strongest tokens."""
    table = latents.table("tokens", columns=["latent", "piece"], filters=[("rank", "<", 3)])
    found: dict[int, list[str]] = {}
    for row in [] if table is None else table.to_pylist():
        found.setdefault(row["latent"], []).append(visible(row["piece"]))
    return {latent: " ".join(pieces) for latent, pieces in found.items()}


def _best_contexts(latents: Latents) -> dict[int, tuple[str, str, str]]:
    """Latent -> its strongest context, a line of it."""
    columns = ["latent", "position", "first", "pieces"]
    table = latents.table("examples", columns=columns, filters=[("kind", "=", "top"), ("rank", "=", 0)])
    return {
        row["latent"]: excerpt(row["pieces"], row["position"] - row["first"])
        for row in ([] if table is None else table.to_pylist())
    }
