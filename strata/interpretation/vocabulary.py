"""The vocabulary of a layer's rows: tokens of a language model, or whole documents with their words.

People read it as text, and rules as numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array

from strata.corpus import read
from strata.corpus.read import Texts
from strata.interpretation import text as texts
from strata.interpretation.word_rules import Bags
from strata.lm.model import DTYPES, LanguageModel, load, pieces

EXCERPT = 600  # characters of a document that are shown
ROWS = 2**17  # the words of at most this many rows are looked at, the first: the documents are shuffled
WORDS = 50_000  # the commonest words are kept, at most this many
SEEN = 3  # a word must stand in at least this many documents
COMMON = 0.5  # and in at most this share of them


@dataclass(frozen=True)
class Vocabulary:
    """What the numbers that stand for tokens mean. Where rows are documents, a document's number is its token.

    ``size``: the numbers are 0 … ``size`` - 1. ``opening``: the number that opens a context.
    ``pieces``: numbers -> their texts. One of the two is set: ``lm``, whose tokens they are, or ``corpus``, whose
    documents they are.
    """

    size: int
    opening: int
    pieces: Callable[[Sequence[int]], list[str]]
    lm: LanguageModel | None = None
    corpus: Texts | None = None

    @property
    def unit(self) -> str:
        """Say what one row is: a token or a document."""
        return "token" if self.corpus is None else "document"

    def bags(self, text: texts.Text) -> Bags | None:
        """Return the words of the first documents; None if rows are tokens."""
        return None if self.corpus is None else bags(self.corpus, text.token[: min(text.rows, ROWS)])

    def label_bags(self, text: texts.Text, labels: Sequence[str | None]) -> Bags | None:
        """Return the labels of the first documents, as if each were the one word of its document.

        None if rows are tokens, or if there are not at least two different labels. ``labels``: by document number.
        """
        if self.corpus is None:
            return None
        return label_bags([labels[document] for document in text.token[: min(text.rows, ROWS)]])


def of_run(lm: Path, corpus: Path, forward: str, device: torch.device) -> Vocabulary:
    """Return the vocabulary for the rows of a run, from its folders `data/lm/` and the corpus.

    Without a language model rows are documents. ``forward``: the dtype of DTYPES in which the model made the rows.
    """
    if read.speechless(read.lm_meta(lm)):
        return of_documents(read.Texts(corpus))
    source, options = read.lm_path(lm)
    return of_tokens(load(source, DTYPES[forward], device, **options))


def of_tokens(lm: LanguageModel) -> Vocabulary:
    """Return the vocabulary for rows that are tokens which ``lm`` read."""
    return Vocabulary(len(lm.tokenizer), lm.bos, partial(pieces, lm.tokenizer), lm=lm)


def of_documents(corpus: Texts) -> Vocabulary:
    """Return the vocabulary for rows that are whole documents. The text of a document is its beginning."""

    def pieces(numbers: Sequence[int]) -> list[str]:
        return [excerpt(text) for text in corpus.of(numbers)]

    return Vocabulary(len(corpus), 0, pieces, corpus=corpus)


def excerpt(text: str) -> str:
    """Cut a text to at most EXCERPT characters, after a whole word."""
    return text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(maxsplit=1)[0] + " …"


def bags(corpus: Texts, documents: Sequence[int] | np.ndarray) -> Bags:
    """Collect the words of ``documents``, in lower case. Each word counts once a document.

    A word that is too rare or too common is left out (SEEN, COMMON); there may be no words left.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    all_texts = (text for at in range(0, len(documents), 1024) for text in corpus.of(documents[at : at + 1024]))
    seen = min(SEEN, max(1, len(documents) // 2))  # of few documents, half
    counter = CountVectorizer(binary=True, min_df=seen, max_df=COMMON, max_features=WORDS)
    try:
        by_row = csr_array(counter.fit_transform(all_texts))
    except ValueError:  # no word is left
        by_row = csr_array((len(documents), 0))
        return Bags([], by_row, csc_array(by_row))

    return Bags(counter.get_feature_names_out().tolist(), by_row, csc_array(by_row))


def label_bags(labels: Sequence[str | None]) -> Bags | None:
    """Return the label of each row as if it were its one word; None if there are not at least two different labels."""
    names = sorted({label for label in labels if label is not None})
    if len(names) < 2:
        return None

    number = {name: place for place, name in enumerate(names)}
    rows, columns = zip(*((row, number[name]) for row, name in enumerate(labels) if name is not None), strict=True)
    by_row = csr_array((np.ones(len(rows), np.int64), (rows, columns)), (len(labels), len(names)))
    return Bags(names, by_row, csc_array(by_row))
