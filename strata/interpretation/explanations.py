"""Explanations of latents and how well they do: token rules for every latent, and the texts that a language model is
shown and judged on. Explainers learn from the documents of one half, drawn by document; the other half is scored on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.interpretation import rules, word_rules
from strata.interpretation.read import Columns
from strata.interpretation.rules import Neighbours, Rules
from strata.interpretation.scoring import (
    SCORES,
    Windows,
    auc,
    cut,
    derangement,
    draw,
    halves,
    score,
    strongest,
    summary,
)
from strata.interpretation.text import Text
from strata.interpretation.vocabulary import Bags
from strata.interpretation.writers import Embed

ALL_SCORES = (*SCORES, "embedding")
ROWS = 2**20  # that rules are learned from and scored on, at the most: the first, of documents in shuffled order
LATENTS = 512  # whose windows are in memory at a time


@dataclass
class Explanation:
    """One latent in words. ``scores``: each of ALL_SCORES, and `<name>_chance`; None where undefined.

    ``items``: windows judged; ``unparsed``: replies about them, or the explanation itself, that could not be read.
    """

    latent: int
    source: str
    text: str | None
    items: int = 0
    unparsed: int = 0
    scores: dict[str, float | None] = field(
        default_factory=lambda: {f"{name}{end}": None for name in ALL_SCORES for end in ("", "_chance")}
    )

    def row(self) -> dict[str, Any]:
        """A row of explanations.parquet."""
        facts = {"latent": self.latent, "source": self.source, "text": self.text}
        return {**facts, **self.scores, "items": self.items, "unparsed": self.unparsed}


@dataclass(frozen=True)
class Halves:
    """The text as explainers see it. ``learned``: (row,) True where they may look; ``shown`` and ``scored``: windows of
    the two halves. Rows end at the limit ROWS. ``near``: where tokens stand, or the words of ``bags``, where rows are
    documents. ``seed``: of all that is drawn."""

    near: Neighbours
    learned: NDArray[np.bool_]
    shown: Windows
    scored: Windows
    seed: int
    bags: Bags | None = None

    def rules(self, starts: NDArray[np.int64], rows: NDArray[Any], values: NDArray[np.float32]) -> Rules:
        """The rules of some latents, of tokens or of words."""
        if self.bags is None:
            return rules.learn(starts, rows, values, self.near, self.learned)
        return word_rules.learn(starts, rows, values, self.bags, self.learned)

    def of(self, columns: Columns, first: int, end: int) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]:
        """The codes of latents ``first`` … ``end`` - 1 (counted from the columns' first) that lie within the limit."""
        bounds = columns.starts[first : end + 1]
        part = slice(int(bounds[0]), int(bounds[-1]))
        rows, values = columns.rows[part], columns.values[part]
        within = rows < len(self.learned)
        starts = np.concatenate([[0], np.cumsum(within)])[bounds - bounds[0]]
        return starts, rows[within], values[within]

    def windows_to_score(self, latent: int, strengths: NDArray[np.float32], items: int) -> NDArray[np.int64]:
        """The same windows of a latent for every explainer."""
        return draw(strengths, items, np.random.default_rng([self.seed, latent]))


def split(text: Text, opening: int, seed: int, bags: Bags | None = None) -> Halves:
    """Share the documents out between explainers and scores. ``opening``: the token that opens a context."""
    rows = min(text.rows, ROWS)
    shown = np.zeros(len(text.document_rows), bool)
    shown[text.documents[halves(len(text.documents), seed)]] = True
    learned = shown[text.document_of(np.arange(rows))]
    if bags is None:
        near = rules.neighbours(text.token[:rows], text.segment[:rows], opening)
    else:
        near = word_rules.neighbours(bags)
    mine, others = cut(text, shown, rows), cut(text, ~shown, rows)
    assert not set(mine.document.tolist()) & set(others.document.tolist()), "a document is both shown and scored"
    return Halves(near, learned, mine, others, seed, bags)


def by_labels(columns: Columns, halves: Halves, labels: Bags, items: int) -> list[Explanation]:
    """Which labels documents have where a latent fires, if labels tell that; learned and scored as rules are."""
    halves = replace(halves, bags=labels, near=word_rules.neighbours(labels))
    _, found = by_rules(columns, halves, items, labels.words.__getitem__)
    return [replace(one, source="label", text=f"label {one.text}") for one in found if one.text is not None]


def by_rules(
    columns: Columns, halves: Halves, items: int, piece: Callable[[int], str]
) -> tuple[list[dict[str, Any]], list[Explanation]]:
    """The token rules of a range of latents, as rows of rules.parquet, and how well they do. ``piece``: token -> text.

    Chance: the same windows with the rule of another latent of the range that has one.
    """
    table, found = [], []
    for first in range(0, len(columns), LATENTS):
        end = min(first + LATENTS, len(columns))
        starts, rows, values = halves.of(columns, first, end)
        learned = halves.rules(starts, rows, values)
        numbers = range(columns.first + first, columns.first + end)
        table += rules.table(learned, numbers, halves.near, piece)
        found += _scored(learned, numbers, strongest(starts, rows, values, halves.scored), halves, items, piece)
    return table, found


def _scored(
    learned: Rules, latents: range, truth: NDArray[np.float32], halves: Halves, items: int, piece: Callable[[int], str]
) -> list[Explanation]:
    expected = rules.predict(learned, halves.near, halves.scored.of_row, truth.shape[1])
    texts = [rules.text(learned, j, halves.near, piece) for j in range(len(latents))]
    found = [Explanation(latent, "rule", text) for latent, text in zip(latents, texts, strict=True)]
    known = np.array([j for j, text in enumerate(texts) if text is not None], int)
    other = known[derangement(len(known), np.random.default_rng([halves.seed, latents.start]))]
    for j, permuted in zip(known, other, strict=True):
        chosen = halves.windows_to_score(latents[j], truth[j], items)
        found[j].items = len(chosen)
        found[j].scores |= score(truth[j, chosen], expected[j, chosen])
        if len(known) > 1:
            chance = score(truth[j, chosen], expected[permuted, chosen])
            found[j].scores |= {f"{name}_chance": value for name, value in chance.items()}
    return found


# --- what a language model is shown ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A window: its tokens as text and the latent's activation on each."""

    pieces: Sequence[str]
    values: Sequence[float]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Case:
    """A latent to explain. ``active`` and ``silent`` are shown, ``scored`` are judged; they share no document."""

    latent: int
    active: Sequence[Example]
    silent: Sequence[Example]
    scored: Sequence[Example]

    @property
    def truth(self) -> NDArray[np.float64]:
        """(scored,) the largest activation in each window."""
        return np.array([max(example.values) for example in self.scored])


def case(
    columns: Columns,
    latent: int,
    halves: Halves,
    text: Text,
    shown: int,
    silent: int,
    items: int,
    pieces: Callable[[Sequence[int]], list[str]],
) -> Case:
    """What to show and ask of one latent of ``columns``.

    Shown are the ``shown`` windows where it is strongest, one a document, and ``silent`` windows where it is silent, at
    random. ``pieces``: token ids -> their texts.
    """
    at = latent - columns.first
    starts, rows, values = halves.of(columns, at, at + 1)

    def examples(windows: Windows, chosen: NDArray[np.int64]) -> list[Example]:
        found = []
        for first, end in zip(windows.first[chosen], windows.end[chosen], strict=True):
            activation = np.zeros(end - first, np.float32)
            inside = slice(*np.searchsorted(rows, [first, end]))
            activation[rows[inside] - first] = values[inside]
            found.append(Example(pieces(text.token[first:end].tolist()), activation.tolist()))
        return found

    strengths = strongest(starts, rows, values, halves.shown)[0]
    order = np.argsort(-strengths, kind="stable")
    order = order[strengths[order] > 0]
    _, first_of_document = np.unique(halves.shown.document[order], return_index=True)
    best = order[np.sort(first_of_document)[:shown]]
    quiet = np.flatnonzero(strengths <= 0)
    random = np.random.default_rng([halves.seed, latent, 1])
    none = random.choice(quiet, min(silent, len(quiet)), replace=False)
    judged = halves.windows_to_score(latent, strongest(starts, rows, values, halves.scored)[0], items)
    return Case(latent, examples(halves.shown, best), examples(halves.shown, none), examples(halves.scored, judged))


# --- scores over latents --------------------------------------------------------------------------------------------


def add_embedding_score(found: Sequence[Explanation], cases: Sequence[Case], embed: Embed, seed: int) -> None:
    """P(a window where the latent fires is nearer to its explanation, by cosine, than one where it is silent)."""
    known = [(i, e.text) for i, e in enumerate(found) if e.text is not None and len(cases[i].scored)]
    if not known:
        return
    texts = embed([text for _, text in known])
    other = derangement(len(known), np.random.default_rng(seed))
    for place, (i, _) in enumerate(known):
        fires, windows = cases[i].truth > 0, embed([example.text for example in cases[i].scored])
        found[i].scores["embedding"] = auc(fires, windows @ texts[place])
        if len(known) > 1:
            found[i].scores["embedding_chance"] = auc(fires, windows @ texts[other[place]])


def report(found: Sequence[Explanation], seed: int) -> dict[str, Any]:
    """The numbers of one source: latents, how many have an explanation, what could not be read, and each score over
    the latents (see `scoring.summary`)."""
    return {
        "latents": len(found),
        "explained": sum(e.text is not None for e in found),
        "items": sum(e.items for e in found),
        "unparsed": sum(e.unparsed for e in found),
        **{
            name: summary([e.scores[name] for e in found], [e.scores[f"{name}_chance"] for e in found], seed)
            for name in ALL_SCORES
        },
    }
