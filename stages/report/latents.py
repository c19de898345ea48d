"""Render the latents' pages: one for each latent, an index for each layer, and an index of the layers.

They are static files: they need no server and request nothing from elsewhere. A text of the corpus is never taken for
markup. It is escaped in a latent's page, which runs one script that is known by its hash, and in the data of an index.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from typing import Any

from markupsafe import Markup

from stages.report.causes import Causes
from stages.report.evaluated import NAMES
from stages.report.families import linked
from stages.report.histogram import histogram
from stages.report.index import index
from stages.report.judged import verdict
from stages.report.layer import Layer, grouped, rank, rows, tenth
from stages.report.templates import FOLDER, environment
from strata.interpretation.read import PERSON
from strata.pages.readable import SCORES, Row, best_first, by_label, inert, inline, marked, number, shade

ASSETS = ("latents.css", "latents.js")
WORDED = ("lm", "endpoint", PERSON)  # sources of names that say more than a list of tokens
SHADES = 10  # of a token's colour, from hardly active to the latent's maximum
GROUPS = {  # kind of example -> heading, what it is, how many are shown before the reader asks for more
    "top": ("Strongest", "where it is most active, one context a document", 12),
    "decile": ("From strong to weak", "drawn from each tenth of its activations: tenth 10 has the strongest", 20),
    "random": ("At random", "drawn from all its activations, none of them above", 6),
    "near": ("Near misses", "texts like the strongest ones, on which it is silent", 4),
    "zero": ("Silent", "drawn from the rest of the corpus: it is 0 on all of it", 3),
}
STEERING = """# For `python`, started in the root of the checkout. A script elsewhere needs `pip install .` first.
import strata
lm, sae = strata.load_lm("data/lm"), strata.load("data/sae/{layer}")
prompt = lm.tokenizer("The", return_tensors="pt")

def write():
    ids = lm.model.generate(**prompt, max_new_tokens=20, do_sample=False)
    print(lm.tokenizer.decode(ids[0], skip_special_tokens=True))

write()  # without steering
with strata.steer(lm, sae, {{{latent}: strata.Set({largest:.4g})}}, layer={layer}):  # as strong as in any text
    write()
"""


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


# --- the files ----------------------------------------------------------------------------------------------------


def site(layers: Sequence[Layer], causes: Causes) -> Iterator[tuple[str, str]]:
    """Yield every file of the folder `reports/latents/`: its path there, and its text. A layer without families gets
    no map."""
    for name in ASSETS:
        yield name, (FOLDER / name).read_text(encoding="utf-8")
    yield "index.html", environment().get_template("layers.html.j2").render(layers=layers)
    for layer in layers:
        number = layer.meta["layer"]
        yield f"{number}/index.html", index(layer)
        for latent, page in latent_pages(layer, causes, layer.ids):
            yield f"{number}/{latent}.html", page
        if (page := map_page(layer)) is not None:
            yield f"{number}/map.html", page


def map_page(layer: Layer) -> str | None:
    """Return the map of a layer, with links to the pages of its ``ids``; None if it has no families."""
    if layer.families is None:
        return None
    words = {row["latent"]: row["name"] for row in layer.statistics if row["named_by"] in WORDED}
    return linked(layer.families.page, layer.ids, words)


def latent_pages(layer: Layer, causes: Causes, wanted: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield each of the ``wanted`` latents, all of which have a page, and that page."""
    template = environment().get_template("latent.html.j2")
    latents, statistics, ids = layer.latents, layer.statistics, layer.ids
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
            explanations=[(one, verdict(one)) for one in best_first(rows_of["explanations"])],
            scores=SCORES,
            rules=rows_of["rules"],
            groups=[(kind, *GROUPS[kind], group) for kind, group in groups.items()],
            context=lambda example, top=row["max"]: context(example, top, meta["unit"]),
            tenth=tenth,
            histogram=histogram(row["histogram"], meta["histogram_edges"], row["mean"], row["max"], meta["unit"]),
            lens={side: [r for r in rows_of["logits"] if r["side"] == side] for side in ("promoted", "suppressed")},
            tokens=rows_of["tokens"],
            labels=by_label(rows_of["enrichment"]),
            neighbours=rows_of["neighbours"],
            mapped=layer.families is not None,
            family=_family(layer, latent),
            statistics=statistics,
            have=place_of,
            called=NAMES,
            **causes.of(meta["layer"], latent),
            tokens_of=lambda text, top=row["max"]: tokens(text["pieces"], text["values"], top),
            **_copied(meta, row),
        )
        yield latent, page


def _family(layer: Layer, latent: int) -> Row | None:
    """Return the family of a latent, with its ``relatives``, the most interesting first; None if it is in none."""
    found = layer.families.of(latent) if layer.families is not None else None
    if found is None:
        return None
    relatives = [other for other in found["members"] if other != latent]
    return {**found, "relatives": sorted(relatives, key=lambda other: rank(layer.statistics[other]))}


def _copied(meta: Row, row: Row) -> dict[str, Any]:
    """Return what the page's buttons copy, as ``texts``, and whether one can steer with the latent, ``steering``."""
    place = {"layer": meta["layer"], "latent": row["latent"]}
    texts: Row = {"about": place, "show": f"python -m src.show {meta['layer']} {row['latent']}"}
    steering = meta["unit"] == "token" and not row["dead"]
    if steering:
        texts["steer"] = STEERING.format(**place, largest=row["max"])
    return {"texts": inert(texts), "steering": steering}


def _ranks(statistics: Sequence[Row]) -> dict[int, int]:
    """Return living latent -> its rank by importance, from 1."""
    living = (row for row in statistics if not row["dead"])
    order = sorted(living, key=lambda row: (-row["importance"], row["latent"]))
    return {row["latent"]: place for place, row in enumerate(order, 1)}
