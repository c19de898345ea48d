"""Explanations of latents, and how well they do.

Every latent has a token rule. For the latents that a language model explains, this module chooses the texts that the
model sees and those on which it is judged. Explainers learn from the documents of one half, drawn at random, and are
scored on the documents of the other half.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.interpretation import rules, word_rules
from strata.interpretation.phrases import of_rule
from strata.interpretation.read import Columns
from strata.interpretation.rules import Neighbours, Rules
from strata.interpretation.scoring import (
    SCORES,
    Embed,
    Windows,
    auc,
    cut,
    draw,
    halves,
    score,
    strangers,
    strongest,
    summary,
)
from strata.interpretation.text import PEAK, Text
from strata.interpretation.word_rules import Bags
from strata.measure.matched import exchanged

FUZZING, INTRUDER = "fuzzing", "intruder"
ALL_SCORES = (*SCORES, "embedding", FUZZING, INTRUDER)
ROWS = 2**20  # rules are learned from and scored on at most this many rows, the first: the documents are shuffled
LATENTS = 512  # latents whose windows are in memory at a time


@dataclass
class Explanation:
    """One latent in words.

    ``source``: rule, label, lm or endpoint. ``text``: None if there is no explanation. ``name``: the same in few words.
    ``items``: how many windows were judged.
    ``unparsed``: how many replies could not be read, of those about the windows and the explanation itself.
    ``echoed``: whether the reply only repeated the prompt, or what most latents got.
    ``scores``: each of ALL_SCORES, and its chance level as `<name>_chance`; None where a score is undefined.
    """

    latent: int
    source: str
    text: str | None
    items: int = 0
    unparsed: int = 0
    echoed: bool = False
    name: str | None = None
    scores: dict[str, float | None] = field(
        default_factory=lambda: {f"{name}{end}": None for name in ALL_SCORES for end in ("", "_chance")}
    )

    def row(self) -> dict[str, Any]:
        """Return a row of explanations.parquet."""
        facts = {"latent": self.latent, "source": self.source, "text": self.text, "name": self.name}
        return {**facts, **self.scores, "items": self.items, "unparsed": self.unparsed}


@dataclass(frozen=True)
class Halves:
    """The text, shared out between explainers and scores. Only the first rows take part.

    ``near``: where each token stands; if rows are documents, where each word of ``bags`` does.
    ``visible``: (row,) True where explainers may look.
    ``shown``, ``scored``: the windows of the half that explainers see, and of the half that they are scored on.
    ``seed``: for all random choices.
    """

    near: Neighbours
    visible: NDArray[np.bool_]
    shown: Windows
    scored: Windows
    seed: int
    bags: Bags | None = None

    def rules(self, starts: NDArray[np.int64], rows: NDArray[Any], values: NDArray[np.float32]) -> Rules:
        """Learn the rules of some latents, of tokens or of words. Arguments: see `rules.learn`."""
        if self.bags is None:
            return rules.learn(starts, rows, values, self.near, self.visible)
        return word_rules.learn(starts, rows, values, self.bags, self.visible)

    def of(self, columns: Columns, first: int, end: int) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]:
        """Return the codes of latents ``first`` … ``end`` - 1 on the first rows, as starts, rows and values.

        ``first`` and ``end`` are counted from the first latent of ``columns``.
        """
        bounds = columns.starts[first : end + 1]
        part = slice(int(bounds[0]), int(bounds[-1]))
        rows, values = columns.rows[part], columns.values[part]

        within = rows < len(self.visible)
        starts = np.concatenate([[0], np.cumsum(within)])[bounds - bounds[0]]
        return starts, rows[within], values[within]

    def windows_to_score(self, latent: int, strengths: NDArray[np.float32], items: int) -> NDArray[np.int64]:
        """Draw the windows to score a latent on; they are the same for every explainer. See `scoring.draw`."""
        return draw(strengths, items, np.random.default_rng([self.seed, latent]))


def split(text: Text, opening: int, seed: int, bags: Bags | None = None, rows: int = ROWS) -> Halves:
    """Share the documents out between explainers and scores.

    ``opening``: the token that opens a context. ``bags``: the words of each document, if rows are documents. ``rows``:
    how many take part at the most, the first.
    """
    rows = min(text.rows, rows)
    shown = np.zeros(len(text.document_rows), bool)  # (document,)
    shown[text.documents[halves(len(text.documents), seed)]] = True
    visible = shown[text.document_of(np.arange(rows))]  # (row,)

    if bags is None:
        near = rules.neighbours(text.token[:rows], text.segment[:rows], opening)
    else:
        near = word_rules.neighbours(bags)

    shown_windows, scored_windows = cut(text, shown, rows), cut(text, ~shown, rows)
    both = set(shown_windows.document.tolist()) & set(scored_windows.document.tolist())
    assert not both, "a document is both shown and scored"
    return Halves(near, visible, shown_windows, scored_windows, seed, bags)


def by_labels(columns: Columns, halves: Halves, labels: Bags, items: int) -> list[Explanation]:
    """Explain latents by the labels of the documents on which they fire, where labels tell that.

    They are learned and scored as token rules are: the label of a document counts as its one word.
    """
    halves = replace(halves, bags=labels, near=word_rules.neighbours(labels))
    _, explanations = by_rules(columns, halves, items, labels.words.__getitem__)
    return [
        replace(explanation, source="label", text=f"label {explanation.text}")
        for explanation in explanations
        if explanation.text is not None
    ]


def by_rules(
    columns: Columns, halves: Halves, items: int, piece: Callable[[int], str]
) -> tuple[list[dict[str, Any]], list[Explanation]]:
    """Return the token rules of a range of latents, as rows of rules.parquet, and as explanations with their scores.

    Chance level: the same windows, judged by the rule of another latent of the range that has one, and that fires in
    nearly as many windows.
    ``items``: windows to score a latent on. ``piece``: token -> its text.
    """
    table, explanations = [], []
    for first in range(0, len(columns), LATENTS):
        end = min(first + LATENTS, len(columns))
        starts, rows, values = halves.of(columns, first, end)
        learned = halves.rules(starts, rows, values)

        latents = range(columns.first + first, columns.first + end)
        truth = strongest(starts, rows, values, halves.scored)
        scored = _scored(learned, latents, truth, halves, items, piece)

        named = rules.table(learned, latents, halves.near, piece)
        pieces: dict[int, dict[int, list[str]]] = {}  # latent -> offset -> the tokens of its rule
        for row in named:
            pieces.setdefault(row["latent"], {})[row["offset"]] = row["pieces"]
        for explanation in scored:
            explanation.name = of_rule(pieces.get(explanation.latent, {}), documents=halves.bags is not None)
        table += named
        explanations += scored
    return table, explanations


def _scored(
    learned: Rules, latents: range, truth: NDArray[np.float32], halves: Halves, items: int, piece: Callable[[int], str]
) -> list[Explanation]:
    """Score the rules of ``latents``. ``truth``: (latent, window) the largest activation in each scored window."""
    expected = rules.predict(learned, halves.near, halves.scored.of_row, truth.shape[1])
    texts = [rules.text(learned, j, halves.near, piece) for j in range(len(latents))]
    explanations = [Explanation(latent, "rule", text) for latent, text in zip(latents, texts, strict=True)]

    with_rule = np.array([j for j, text in enumerate(texts) if text is not None], int)
    firing = (truth[with_rule] > 0).sum(1)  # windows in which each fires
    permuted = with_rule[exchanged(firing, np.random.default_rng([halves.seed, latents.start]))]
    for j, other in zip(with_rule, permuted, strict=True):
        windows = halves.windows_to_score(latents[j], truth[j], items)
        explanations[j].items = len(windows)
        explanations[j].scores |= score(truth[j, windows], expected[j, windows])
        if len(with_rule) > 1:
            chance = score(truth[j, windows], expected[other, windows])
            explanations[j].scores |= {f"{name}_chance": value for name, value in chance.items()}
    return explanations


# --- what a language model is shown ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A window of text: its tokens, and the latent's activation on each of them."""

    pieces: Sequence[str]
    values: Sequence[float]

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def words(self) -> int:
        """How many words it has."""
        return len(self.text.split())

    def halved(self) -> "Example":
        """Keep the half that is around the peak; of a document, which is one piece, keep the first half."""
        count, half = len(self.pieces), len(self.pieces) // 2
        if count == 1:
            words = self.text.split()
            return Example([" ".join(words[: max(len(words) // 2, 1)])], self.values)

        first = min(max(int(np.argmax(self.values)) - half // 2, 0), count - half)
        return Example(self.pieces[first : first + half], self.values[first : first + half])

    def around(self, count: int, random: np.random.Generator) -> "Example":
        """Keep ``count`` tokens around the peak, or where there is none around any token."""
        peak = int(np.argmax(self.values)) if max(self.values) > 0 else int(random.integers(len(self.values)))
        first = min(max(peak - int(PEAK * count), 0), max(len(self.pieces) - count, 0))
        return Example(self.pieces[first : first + count], self.values[first : first + count])

    def cut(self, fits: Callable[["Example"], bool]) -> "Example":
        """Halve it until ``fits`` says that there is room for it, or one word is left."""
        example = self
        while example.words > 1 and not fits(example):
            example = example.halved()
        return example


@dataclass(frozen=True)
class Case:
    """A latent to explain.

    ``active`` and ``silent``: windows that the explainer sees. ``scored``: windows that it judges. The windows that it
    sees and those that it judges share no document. ``documents``: each is a whole document, of which an embedding
    model makes one vector, and has no tokens to mark.
    """

    latent: int
    active: Sequence[Example]
    silent: Sequence[Example]
    scored: Sequence[Example]
    documents: bool = False

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
    judged: int | None = None,
) -> Case:
    """Choose what to show, and what to ask, about one latent of ``columns``.

    An explainer sees the ``shown`` windows where the latent is strongest, one a document, and ``silent`` random windows
    where it is silent. It judges ``items`` windows, of each ``judged`` tokens, or all. ``pieces``: token ids -> their
    texts.
    """
    at = latent - columns.first
    starts, rows, values = halves.of(columns, at, at + 1)

    def examples(windows: Windows, chosen: NDArray[np.int64]) -> list[Example]:
        """Return the windows with these numbers as text, with the activation on each token."""
        chosen_examples = []
        for first, end in zip(windows.first[chosen], windows.end[chosen], strict=True):
            activation = np.zeros(end - first, np.float32)
            inside = slice(*np.searchsorted(rows, [first, end]))
            activation[rows[inside] - first] = values[inside]
            chosen_examples.append(Example(pieces(text.token[first:end].tolist()), activation.tolist()))
        return chosen_examples

    # The strongest window of each document, strongest first.
    strengths = strongest(starts, rows, values, halves.shown)[0]  # (window,)
    order = np.argsort(-strengths, kind="stable")
    order = order[strengths[order] > 0]
    _, first_of_document = np.unique(halves.shown.document[order], return_index=True)
    strongest_windows = order[np.sort(first_of_document)[:shown]]

    all_silent = np.flatnonzero(strengths <= 0)
    random = np.random.default_rng([halves.seed, latent, 1])
    silent_windows = random.choice(all_silent, min(silent, len(all_silent)), replace=False)

    to_score = halves.windows_to_score(latent, strongest(starts, rows, values, halves.scored)[0], items)
    scored = examples(halves.scored, to_score)
    if judged is not None and halves.bags is None:
        places = np.random.default_rng([halves.seed, latent, 2])
        scored = [example.around(judged, places) for example in scored]
    return Case(
        latent,
        active=examples(halves.shown, strongest_windows),
        silent=examples(halves.shown, silent_windows),
        scored=scored,
        documents=halves.bags is not None,
    )


# --- scores over latents --------------------------------------------------------------------------------------------


def add_embedding_score(found: Sequence[Explanation], cases: Sequence[Case], embed: Embed, seed: int) -> None:
    """Add the score "embedding" to each of the explanations ``found``.

    It is P(a window where the latent fires is nearer to its explanation, by cosine, than a window where it is silent).
    Chance level: the same windows with the explanation of another latent. ``cases``: one for each explanation.
    """
    scorable = [(i, e.text) for i, e in enumerate(found) if e.text is not None and len(cases[i].scored)]
    if not scorable:
        return

    text_vectors = embed([text for _, text in scorable])
    others = strangers([text for _, text in scorable], np.random.default_rng(seed))
    for (i, _), own_vector, other in zip(scorable, text_vectors, others, strict=True):
        fires = cases[i].truth > 0
        window_vectors = embed([example.text for example in cases[i].scored])
        found[i].scores["embedding"] = auc(fires, window_vectors @ own_vector)
        if other is not None:
            found[i].scores["embedding_chance"] = auc(fires, window_vectors @ text_vectors[other])


def report(found: Sequence[Explanation], seed: int, scores: Sequence[str] = ALL_SCORES) -> dict[str, Any]:
    """Sum up the explanations of one source for the report, by these ``scores``.

    Returns how many latents there are, how many have an explanation, how many windows were judged, how many replies
    could not be read, how many explanations only repeated the prompt, and each score over the latents (see
    `scoring.summary`).
    """
    return {
        "latents": len(found),
        "explained": sum(e.text is not None for e in found),
        "items": sum(e.items for e in found),
        "unparsed": sum(e.unparsed for e in found),
        "echoed": sum(e.echoed for e in found),
        **{
            name: summary([e.scores[name] for e in found], [e.scores[f"{name}_chance"] for e in found], seed)
            for name in scores
        },
    }
