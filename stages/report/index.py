"""Render the index of a layer, in which all its latents can be searched and sorted."""

from stages.report.layer import Layer, rank
from stages.report.templates import environment
from strata.interpretation.read import Latents
from strata.pages.readable import Row, excerpt, inert, number, percent, visible

NUMBERS = ("interest", "importance", "mean", "max")  # columns of the statistics that the table shows, beside density


def index(layer: Layer) -> str:
    """Render the page of a layer's index.

    It carries the data of the table column by column: name -> a value for each latent. Numbers are texts, rounded as
    the latents' own pages round them. ``place`` is the order of interest.
    """
    latents, statistics, ids, notes, families = layer
    states = ["kept", *sorted({_state(row) for row in statistics} - {"kept", "dead"}), "dead"]
    count = dict.fromkeys(states, 0)

    data: Row = {name: [] for name in ("text", "score", "chance", "tokens", "context", "state")}
    data |= {name: [number(row[name]) for row in statistics] for name in NUMBERS}
    data["density"] = [percent(row["density"]) for row in statistics]
    order = sorted(statistics, key=rank)
    places = {row["latent"]: place for place, row in enumerate(order)}
    data["place"] = [places[row["latent"]] for row in statistics]

    strongest_tokens, strongest_contexts = _strongest_tokens(latents), _strongest_contexts(latents)
    for row in statistics:
        note = notes.get(row["latent"], {})
        state = _state(row)
        count[state] += 1
        data["text"].append(row["name"] or "")
        data["score"].append(number(note.get("balanced_accuracy")))
        data["chance"].append(number(note.get("balanced_accuracy_chance")))
        data["tokens"].append(strongest_tokens.get(row["latent"], ""))
        data["context"].append(strongest_contexts.get(row["latent"], 0))
        data["state"].append(states.index(state))

    return (
        environment()
        .get_template("latents.html.j2")
        .render(
            layer=layer,
            mapped=families is not None,
            states=[(place, state, count[state]) for place, state in enumerate(states) if count[state]],
            data=inert({"layer": latents.meta["layer"], "states": states, "pages": ids, **data}),
        )
    )


def _state(row: Row) -> str:
    """Return a latent's state by the filters: dead, kept, or why it was dropped."""
    return "dead" if row["dead"] else (row["dropped"] or "kept").replace("_", " ")


def _strongest_tokens(latents: Latents) -> dict[int, str]:
    """Return latent -> its three strongest tokens."""
    table = latents.table("tokens", columns=["latent", "piece"], filters=[("rank", "<", 3)])
    pieces_of: dict[int, list[str]] = {}
    for row in [] if table is None else table.to_pylist():
        pieces_of.setdefault(row["latent"], []).append(visible(row["piece"]))
    return {latent: " ".join(pieces) for latent, pieces in pieces_of.items()}


def _strongest_contexts(latents: Latents) -> dict[int, tuple[str, str, str]]:
    """Return latent -> one line of its strongest context: the text before the token, the token, the text after it.

    A vector of a whole document says nothing of single tokens, so nothing of its text is marked.
    """
    columns = ["latent", "position", "first", "pieces"]
    table = latents.table("examples", columns=columns, filters=[("kind", "=", "top"), ("rank", "=", 0)])
    lines = {
        row["latent"]: excerpt(row["pieces"], row["position"] - row["first"])
        for row in ([] if table is None else table.to_pylist())
    }
    if latents.meta["unit"] == "document":
        return {latent: (text, "", "") for latent, (_, text, _) in lines.items()}
    return lines
