"""Write one latent's card: what its page says, in the width of a terminal."""

from collections.abc import Iterator, Sequence
from itertools import chain
from textwrap import wrap

from strata.interpretation.read import PERSON, Latents
from strata.pages.readable import (
    SCORES,
    UNNAMED,
    Row,
    best_first,
    by_label,
    inline,
    marked,
    number,
    percent,
    shade,
    visible,
)
from strata.run.door import BadInput

HEAT = (230, 229, 228, 227, 221, 220, 214, 208)  # of the 256 colours, from hardly active to the latent's maximum
# kind of example -> heading, how many are shown
KINDS = {"top": ("strongest", 8), "random": ("at random", 4), "near": ("near misses", 2)}
GUTTER = 8  # columns before a context, for its activation


def card(latents: Latents, latent: int, width: int, colour: bool) -> str:
    """Return everything that is known of ``latent``, in lines of ``width``.

    Without ``colour``, « and » mark the token of a context at which it is strongest. Raises BadInput for a latent that
    the layer does not have.
    """
    count = latents.meta["latents"]
    if not 0 <= latent < count:
        raise BadInput(f"latent {latent} is out of range: layer {latents.meta['layer']} has latents 0 to {count - 1}")

    (row,) = latents.rows("statistics", latent)
    notes = best_first(latents.rows("explanations", latent))
    bold, faint, plain = ("\033[1m", "\033[2m", "\033[0m") if colour else ("", "", "")

    state = ""
    if row["dead"]:
        state = "   dead"
    elif row["dropped"]:
        state = f"   dropped: {row['dropped'].replace('_', ' ')}"
    texts = f"   on {', '.join(latents.meta['texts'])}" if latents.meta["texts"] else ""
    lines = [f"{bold}layer {latents.meta['layer']} · latent {latent}{plain}{state}{texts}"]
    if row["dead"]:
        return f"{lines[0]}\nnever active on any of the {number(latents.meta['rows'])} {latents.meta['unit']}s\n"

    by_person = " (named by a person)" if row["named_by"] == PERSON else ""
    lines += wrap(inline(row["name"] or UNNAMED) + by_person, width)
    for note in notes:
        lines += wrap(f"{note['source']}: {inline(note['text'] or 'nothing found')}", width)
        lines += [f"{faint}{line}{plain}" for line in wrap(_scores(note), width)]

    lines += ["", *wrap(_numbers(latents, row), width)]
    for name, text in _lists(latents, latent):
        lines += wrap(text, width, initial_indent=f"{name:<11}", subsequent_indent=" " * 11)

    examples = latents.rows("examples", latent)
    for kind, (heading, most) in KINDS.items():
        shown = sorted((r for r in examples if r["kind"] == kind), key=lambda r: r["rank"])[:most]
        if shown:
            lines += ["", f"{bold}{heading}{plain}"]
            lines += chain.from_iterable(_context(example, row["max"], width, colour) for example in shown)
    return "\n".join(lines) + "\n"


def _scores(note: Row) -> str:
    """Write the scores of an explanation, each beside chance."""
    scores = [
        f"{label} {note[name]:.2f} (chance {number(note[f'{name}_chance'])})"
        for name, label in SCORES.items()
        if note[name] is not None
    ]
    return " · ".join(scores) or "not scored"


def _numbers(latents: Latents, row: Row) -> str:
    """Write a latent's statistics, ``row``, and its rank by importance among the living latents."""
    table = latents.table("statistics", columns=["importance", "dead"])
    assert table is not None
    living = [value for value, dead in zip(*table.to_pydict().values(), strict=True) if not dead]
    rank = 1 + sum(value > row["importance"] for value in living)

    return " · ".join(
        (
            f"interest {number(row['interest'])}",
            f"importance {number(row['importance'])} (rank {number(rank)} of {number(len(living))})",
            f"active on {percent(row['density'])}: {number(row['active'])} {latents.meta['unit']}s",
            *([f"{number(row['documents'])} documents"] if latents.meta["unit"] == "token" else []),
            f"mean {number(row['mean'])}, max {number(row['max'])}",
        )
    )


def _lists(latents: Latents, latent: int) -> Iterator[tuple[str, str]]:
    """Yield what the tables say of a latent: the name of a line and its text. A table without rows has no line."""
    tokens = latents.rows("tokens", latent)[:8]
    yield from _line(
        "tokens" if latents.meta["unit"] == "token" else "words",
        [f"{visible(r['piece'])} {percent(r['share'])} ×{number(r['lift'])}" for r in tokens],
    )

    logits = latents.rows("logits", latent)
    for side in ("promoted", "suppressed"):
        yield from _line(side, [visible(r["piece"]) for r in logits if r["side"] == side][:10], "  ")

    significant = [row for row in latents.rows("enrichment", latent) if row["q"] < 0.05]
    labels = by_label(significant)[:3]
    yield from _line("labels", [f"{inline(label)} ({_significance(levels)})" for label, levels in labels])

    neighbours = latents.rows("neighbours", latent)[:8]
    yield from _line("neighbours", [f"{r['neighbour']} ({r['cosine']:.2f})" for r in neighbours])


def _significance(levels: dict[str, Row]) -> str:
    """Write a label's q, its false discovery rate, by document and by token."""
    return ", ".join(
        f"q {number(levels[level]['q'])} by {level}s" for level in ("document", "token") if level in levels
    )


def _line(name: str, parts: Sequence[str], between: str = " · ") -> Iterator[tuple[str, str]]:
    """Yield a line of ``parts``; nothing if there are none."""
    if parts:
        yield name, between.join(parts)


def _context(example: Row, strongest: float, width: int, colour: bool) -> Iterator[str]:
    """Yield a context in lines of ``width``, broken before a token that begins a word.

    ``line`` is the line so far, of ``used`` columns; ``word`` are the tokens since the last space, of ``length``
    columns. Escape codes for colours take no column, so columns are counted apart from the text.
    """
    peak = example["position"] - example["first"]
    line, used = f"{number(example['value']):>{GUTTER - 2}}  ", GUTTER
    word, length = "", 0

    for place, (piece, value) in enumerate(zip(example["pieces"], example["values"], strict=True)):
        space, text = marked(piece) if value > 0 and (colour or place == peak) else ("", inline(piece))
        if value > 0 and colour:
            weight = "1;4;" if place == peak else ""  # bold and underlined
            drawn = f"\033[{weight}38;5;16;48;5;{HEAT[shade(value, strongest, len(HEAT)) - 1]}m{text}\033[0m"
        else:
            drawn = text = f"«{text}»" if value > 0 and place == peak else text

        # The word would not fit: it begins the next line.
        if used + length + len(space + text) > width and used > GUTTER:
            yield line
            line, used = " " * GUTTER, GUTTER

        # A token that begins a word ends the one before, which joins the line.
        if (space + text).startswith(" "):
            cut = len(word) - len(word.lstrip(" ")) if used == GUTTER else 0  # no space begins a line
            line, used, word, length = line + word[cut:], used + length - cut, "", 0
        word, length = word + space + drawn, length + len(space + text)

    yield line + (word.lstrip(" ") if used == GUTTER else word)
