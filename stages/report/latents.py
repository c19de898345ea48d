"""Render the latents' pages: one for each latent, an index for each layer, and an index of the layers.

They are static files: they need no server and request nothing from elsewhere. A text of the corpus is never taken for
markup. It is escaped in a latent's page, which runs no script at all, and in the data of an index.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from typing import NamedTuple

from markupsafe import Markup

from stages.report.causes import Causes
from stages.report.evaluated import NAMES
from stages.report.families import Families, linked
from stages.report.templates import FOLDER, environment
from strata.interpretation.read import PERSON, Latents
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
WORDED = ("lm", "endpoint", PERSON)  # sources of names that say more than a list of tokens
SHADES = 10  # of a token's colour, from hardly active to the latent's maximum
GROUPS = {  # kind of example -> heading, what it is, how many are shown before the reader asks for more
    "top": ("Strongest", "where it is most active, one context a document", 12),
    "decile": ("From strong to weak", "drawn from each tenth of its activations, the strongest tenth first", 20),
    "random": ("At random", "drawn from all its activations, none of them above", 6),
    "near": ("Near misses", "texts like the strongest ones, on which it is silent", 4),
    "zero": ("Silent", "drawn from the rest of the corpus: it is 0 on all of it", 3),
}


EACH = 3  # latents that are explained worst, of a layer


class Layer(NamedTuple):
    """What the pages show of one layer.

    ``statistics``: a row for each latent. ``ids``: the latents that have a page, the most interesting first. ``notes``:
    latent -> its best explanation.
    """

    latents: Latents
    statistics: list[Row]
    ids: list[int]
    notes: dict[int, Row]

    @property
    def meta(self) -> Row:
        """What interpret's `meta.json` says."""
        return self.latents.meta

    @property
    def living(self) -> int:
        """How many latents are not dead."""
        return sum(not row["dead"] for row in self.statistics)


def read_layer(latents: Latents, pages: int, selected: Sequence[int] = ()) -> Layer:
    """Read a layer, and choose its pages: the ``pages`` most interesting latents, the ``selected``, those with a name
    that a person gave, and the worst.
    """
    statistics, notes = latents.statistics().to_pylist(), _notes(latents)
    asked = [*selected, *latents.names_by_people, *(worst(statistics, notes) if pages else [])]
    return Layer(latents, statistics, chosen(statistics, pages, asked), notes)


# --- which latents, and what is known of them ---------------------------------------------------------------------


def chosen(statistics: Sequence[Row], pages: int, selected: Sequence[int] = ()) -> list[int]:
    """Return the latents that get a page, the most interesting first.

    They are ``pages`` living latents and those that a later stage ``selected``. Of latents that are equally interesting
    the important ones come first, and those that the filters kept before the others.
    """

    def rank(row: Row) -> tuple[float, bool, float, int]:
        return -row["interest"], not row["kept"], -row["importance"], row["latent"]

    living = [row for row in statistics if not row["dead"]]
    best = {row["latent"] for row in sorted(living, key=rank)[:pages]}
    wanted = best | {latent for latent in selected if latent < len(statistics)}
    return sorted(wanted, key=lambda latent: rank(statistics[latent]))


def worst(statistics: Sequence[Row], notes: Mapping[int, Row], each: int = EACH) -> list[int]:
    """Return the kept latents whose explanation scores worst; of equal scores the more important comes first.

    Only the score counts, not its distance from chance: a latent's chance is the score of one other latent's
    explanation, which may happen to fit. One without a score does not count.
    """
    scored = [
        (note["balanced_accuracy"], -row["importance"], row["latent"])
        for row in statistics
        if row["kept"] and (note := notes.get(row["latent"])) and note["balanced_accuracy"] is not None
    ]
    return [latent for _, _, latent in sorted(scored)[:each]]


def rows(latents: Latents, name: str, ids: Sequence[int]) -> dict[int, list[Row]]:
    """Return latent -> its rows of the table ``name``, in the table's order.

    Each of ``ids`` has an entry, which is empty where interpret wrote no such table.
    """
    table = latents.table(name, filters=[("latent", "in", list(ids))]) if ids else None
    rows_of: dict[int, list[Row]] = {latent: [] for latent in ids}
    for row in [] if table is None else table.to_pylist():
        rows_of[row["latent"]].append(row)
    return rows_of


def grouped(examples: Sequence[Row]) -> dict[str, list[Row]]:
    """Group examples by kind, the strongest first. All deciles are one kind; a kind without examples has no entry."""
    groups: dict[str, list[Row]] = {kind: [] for kind in GROUPS}
    for row in examples:
        groups[row["kind"].partition("-")[0]].append(row)

    # The latent is silent on near misses, so those keep the order of their rank.
    return {
        kind: sorted(group, key=lambda row: (-_tenth(row), -row["value"] * (kind != "near"), row["rank"]))
        for kind, group in groups.items()
        if group
    }


def _tenth(row: Row) -> int:
    """Return the number of an example's decile: ``decile-9`` -> 9; 0 for any other kind."""
    return int(row["kind"].partition("-")[2] or 0)


# --- pieces of markup ---------------------------------------------------------------------------------------------


@cache
def _plain(piece: str) -> str:
    """Escape a token on which the latent is silent."""
    return escape(inline(piece))


@cache
def _marked(piece: str) -> tuple[str, str]:
    """Split a token into the space before it, which is not coloured, and its escaped word."""
    space, word = marked(piece)
    return space, escape(word)


def context(example: Row, strongest: float, unit: str = "token") -> Markup:
    """Render an example's window: each token on which the latent is active is coloured by its share of ``strongest``.

    A vector of a whole document says nothing of single tokens, so the document's text is plain.
    """
    if unit == "document":
        return Markup(_plain(example["pieces"][0]))
    return tokens(example["pieces"], example["values"], strongest, example["position"] - example["first"])


def tokens(pieces: Sequence[str], values: Sequence[float], strongest: float, peak: int | None = None) -> Markup:
    """Render tokens, each coloured by its share of ``strongest``. ``peak``: the place of the one to underline."""
    parts = []
    for place, (piece, value) in enumerate(zip(pieces, values, strict=True)):
        if value > 0:
            space, word = _marked(piece)
            classes = f"a{shade(value, strongest, SHADES)}{' peak' if place == peak else ''}"
            parts.append(f'{space}<mark class="{classes}" data-v="{number(value)}">{word}</mark>')
        else:
            parts.append(_plain(piece))
    return Markup("".join(parts).lstrip(" "))


def histogram(counts: Sequence[int], edges: Sequence[float], mean: float, unit: str = "token") -> Markup:
    """Draw how often the latent takes a value, as SVG: bars over a logarithmic axis, the mean as a dashed line.

    ``counts``: (bins,) how many rows have a value in the bin. ``edges``: (bins + 1,) the values between the bins. Empty
    bins at either end are left out; the picture of a dead latent is empty.
    """
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return Markup("")
    first, end = filled[0], filled[-1] + 1
    counts, edges = counts[first:end], edges[first : end + 1]

    width, height, foot = 320.0, 96.0, 16.0  # of the picture, in SVG's units; the labels stand in the foot
    bar_width, tallest = width / len(counts), max(counts)
    bars = []
    for place, (count, low, high) in enumerate(zip(counts, edges, edges[1:], strict=False)):
        if count:
            bar_height = max(1.0, 82 * count / tallest)
            bars.append(
                f'<rect x="{place * bar_width + 0.5:.1f}" y="{height - bar_height:.1f}" '
                f'width="{max(bar_width - 1, 0.6):.1f}" height="{bar_height:.1f}"><title>{number(low)} – '
                f"{number(high)}: {number(count)} {unit}s</title></rect>"
            )

    # The mean stands inside the bar that holds it, by its share of the way from edge to edge.
    place = min(max(bisect_left(edges, mean) - 1, 0), len(counts) - 1)
    low, high = edges[place], edges[place + 1]
    mean_x = bar_width * (place + (mean - low) / (high - low))
    anchor = "end" if mean_x > width * 0.6 else "start"  # the side of the line on which its label has room

    label = f"Histogram of its activations from {number(edges[0])} to {number(edges[-1])}, mean {number(mean)}"
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {width:.0f} {height + foot:.0f}" role="img" aria-label="{label}">'
        f"{''.join(bars)}"
        f'<line x1="0" y1="{height}" x2="{width:.0f}" y2="{height}"/>'
        f'<line class="mean" x1="{mean_x:.1f}" y1="4" x2="{mean_x:.1f}" y2="{height}"/>'
        f'<text x="{mean_x + (-4 if anchor == "end" else 4):.1f}" y="12" text-anchor="{anchor}">'
        f"mean {number(mean)}</text>"
        f'<text x="0" y="{height + 13}">{number(edges[0])}</text>'
        f'<text x="{width:.0f}" y="{height + 13}" text-anchor="end">{number(edges[-1])}</text></svg>'
    )


# --- the files ----------------------------------------------------------------------------------------------------


def site(
    layers: Sequence[Layer], causes: Causes, families: Mapping[int, Families] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield every file of the folder `reports/latents/`: its path there, and its text.

    ``families``: layer -> its families; a layer without them gets no map.
    """
    for name in ASSETS:
        yield name, (FOLDER / name).read_text(encoding="utf-8")
    yield "index.html", environment().get_template("layers.html.j2").render(layers=layers)
    for layer in layers:
        number = layer.meta["layer"]
        yield f"{number}/index.html", index(layer)
        for latent, page in latent_pages(layer, causes, layer.ids):
            yield f"{number}/{latent}.html", page
        if families and number in families:
            words = {row["latent"]: row["name"] for row in layer.statistics if row["named_by"] in WORDED}
            yield f"{number}/map.html", linked(families[number].page, layer.ids, words)


def _notes(latents: Latents) -> dict[int, Row]:
    """Return latent -> its best explanation."""
    table = latents.table("explanations")
    return {latent: rows[0] for latent, rows in explained(table.to_pylist() if table else []).items()}


def latent_pages(layer: Layer, causes: Causes, wanted: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield each of the ``wanted`` latents, all of which have a page, and that page."""
    template = environment().get_template("latent.html.j2")
    latents, statistics, ids, _ = layer
    meta, ranks, place_of = latents.meta, _ranks(statistics), {latent: place for place, latent in enumerate(ids)}

    # Each table is read once for all latents, not once for each.
    names = ("examples", "tokens", "logits", "enrichment", "explanations", "rules", "neighbours")
    tables = {name: rows(latents, name, wanted) for name in names}

    for latent in wanted:
        row, place = statistics[latent], place_of[latent]
        rows_of = {name: table[latent] for name, table in tables.items()}
        groups = grouped(rows_of["examples"])

        page = template.render(
            meta=meta,
            row=row,
            rank=ranks.get(latent),
            living=len(ranks),
            before=ids[place - 1] if place else None,
            after=ids[place + 1] if place + 1 < len(ids) else None,
            explanations=best_first(rows_of["explanations"]),
            scores=SCORES,
            rules=rows_of["rules"],
            groups=[(kind, *GROUPS[kind], group) for kind, group in groups.items()],
            context=lambda example, top=row["max"]: context(example, top, meta["unit"]),
            histogram=histogram(row["histogram"], meta["histogram_edges"], row["mean"], meta["unit"]),
            lens={side: [r for r in rows_of["logits"] if r["side"] == side] for side in ("promoted", "suppressed")},
            tokens=rows_of["tokens"],
            labels=by_label(rows_of["enrichment"]),
            neighbours=rows_of["neighbours"],
            statistics=statistics,
            have=place_of,
            called=NAMES,
            **causes.of(meta["layer"], latent),
            tokens_of=lambda text, top=row["max"]: tokens(text["pieces"], text["values"], top),
        )
        yield latent, page


def _ranks(statistics: Sequence[Row]) -> dict[int, int]:
    """Return living latent -> its rank by importance, from 1."""
    living = (row for row in statistics if not row["dead"])
    order = sorted(living, key=lambda row: (-row["importance"], row["latent"]))
    return {row["latent"]: place for place, row in enumerate(order, 1)}


def index(layer: Layer) -> str:
    """Render the index of a layer, in which all its latents can be searched and sorted.

    The page carries the data of the table column by column: name -> a value for each latent.
    """
    latents, statistics, ids, notes = layer
    states = ["kept", *sorted({_state(row) for row in statistics} - {"kept", "dead"}), "dead"]
    count = dict.fromkeys(states, 0)

    data: Row = {name: [] for name in ("text", "score", "chance", "tokens", "context", "state")}
    data |= {
        name: [_short(row[name]) for row in statistics] for name in ("interest", "density", "mean", "max", "importance")
    }
    strongest_tokens, strongest_contexts = _strongest_tokens(latents), _strongest_contexts(latents)
    for row in statistics:
        note = notes.get(row["latent"], {})
        state = _state(row)
        count[state] += 1
        data["text"].append(row["name"] or "")
        data["score"].append(_short(note.get("balanced_accuracy")))
        data["chance"].append(_short(note.get("balanced_accuracy_chance")))
        data["tokens"].append(strongest_tokens.get(row["latent"], ""))
        data["context"].append(strongest_contexts.get(row["latent"], 0))
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
    """Return a latent's state by the filters: dead, kept, or why it was dropped."""
    return "dead" if row["dead"] else (row["dropped"] or "kept").replace("_", " ")


def _short(value: float | None) -> float | None:
    """Round a number to the digits that the index shows."""
    return None if value is None else float(f"{value:.4g}")


def _strongest_tokens(latents: Latents) -> dict[int, str]:
    """Return latent -> its three strongest tokens."""
    table = latents.table("tokens", columns=["latent", "piece"], filters=[("rank", "<", 3)])
    pieces_of: dict[int, list[str]] = {}
    for row in [] if table is None else table.to_pylist():
        pieces_of.setdefault(row["latent"], []).append(visible(row["piece"]))
    return {latent: " ".join(pieces) for latent, pieces in pieces_of.items()}


def _strongest_contexts(latents: Latents) -> dict[int, tuple[str, str, str]]:
    """Return latent -> one line of its strongest context: the text before the token, the token, the text after it."""
    columns = ["latent", "position", "first", "pieces"]
    table = latents.table("examples", columns=columns, filters=[("kind", "=", "top"), ("rank", "=", 0)])
    return {
        row["latent"]: excerpt(row["pieces"], row["position"] - row["first"])
        for row in ([] if table is None else table.to_pylist())
    }
