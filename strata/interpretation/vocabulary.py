"""What stands on a row, for a person and for rules: a token of a language model, or a document and its words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import csc_array, csr_array

from strata.corpus.read import Texts
from strata.interpretation import text as texts
from strata.lm.model import LanguageModel, pieces

EXCERPT = 600  # characters of a document that are shown
ROWS = 2**17  # whose words are looked at, the first ones, of documents in shuffled order
WORDS = 50_000  # the commonest, each of at least
SEEN = 3  # documents, and of at most
COMMON = 0.5  # of them


@dataclass(frozen=True)
class Bags:
    """Which ``words`` each of the first rows holds: ``by_row`` (row, word) and ``by_word``, the same, ones."""

    words: list[str]
    by_row: csr_array
    by_word: csc_array

    @property
    def rows(self) -> int:
        return len(self.by_row.indptr) - 1


@dataclass(frozen=True)
class Vocabulary:
    """``size``: how many numbers a row's token may have; ``pieces``: their texts; ``opening``: what opens a context.

    ``lm`` and ``corpus``: the one or the other, what the tokens are of.
    """

    size: int
    opening: int
    pieces: Callable[[Sequence[int]], list[str]]
    lm: LanguageModel | None = None
    corpus: Texts | None = None

    @property
    def unit(self) -> str:
        """What one row is."""
        return "token" if self.corpus is None else "document"

    def bags(self, text: texts.Text) -> Bags | None:
        """The words of documents; None where rows are tokens."""
        return None if self.corpus is None else bags(self.corpus, text.token[: min(text.rows, ROWS)])

    def label_bags(self, text: texts.Text, labels: Sequence[str | None]) -> Bags | None:
        """The labels of documents, by document number; None where rows are tokens, or there is one label at most."""
        return None if self.corpus is None else label_bags([labels[row] for row in text.token[: min(text.rows, ROWS)]])


def of_tokens(lm: LanguageModel) -> Vocabulary:
    """Rows are tokens that ``lm`` read."""
    return Vocabulary(len(lm.tokenizer), lm.bos, partial(pieces, lm.tokenizer), lm=lm)


def of_documents(corpus: Texts) -> Vocabulary:
    """Rows are whole documents, shown by their beginning."""

    def pieces(numbers: Sequence[int]) -> list[str]:
        return [excerpt(text) for text in corpus.of(numbers)]

    return Vocabulary(len(corpus), 0, pieces, corpus=corpus)


def excerpt(text: str) -> str:
    """At most EXCERPT characters, ending with a whole word."""
    return text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(maxsplit=1)[0] + " …"


def bags(corpus: Texts, documents: Sequence[int] | np.ndarray) -> Bags:
    """The words of ``documents``, in lower case, each counted once a document; none where none is seen twice."""
    from sklearn.feature_extraction.text import CountVectorizer

    said = (text for first in range(0, len(documents), 1024) for text in corpus.of(documents[first : first + 1024]))
    least = min(SEEN, max(1, len(documents) // 2))
    counter = CountVectorizer(binary=True, min_df=least, max_df=COMMON, max_features=WORDS)
    try:
        by_row = csr_array(counter.fit_transform(said))
    except ValueError:  # no word is left
        by_row = csr_array((len(documents), 0))
        return Bags([], by_row, csc_array(by_row))
    return Bags(counter.get_feature_names_out().tolist(), by_row, csc_array(by_row))


def label_bags(labels: Sequence[str | None]) -> Bags | None:
    """The one label of each row in place of its words; None where there are not two labels to tell apart."""
    names = sorted({label for label in labels if label is not None})
    if len(names) < 2:
        return None
    number = {name: place for place, name in enumerate(names)}
    rows, columns = zip(*((row, number[name]) for row, name in enumerate(labels) if name is not None), strict=True)
    by_row = csr_array((np.ones(len(rows), np.int64), (rows, columns)), (len(labels), len(names)))
    return Bags(names, by_row, csc_array(by_row))
