"""Rules for documents: a latent fires on those that hold one of a few words.

As in rules.py, the words are learned from the documents of one half and scored on the other half. The search is greedy:
the next word is the one that raises F1 most beside the words chosen before. A document counts once, however many of the
words it holds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, diags_array

from strata.interpretation.rules import Neighbours, Rules

MOST = 8  # words of a rule
ENOUGH = 0.01  # F1 that each word has to add
HITS = 3  # a word must stand in so many documents on which the latent fires: fewer say little
CELLS = 2**21  # latents × words at a time, 8 bytes each, in several arrays


@dataclass(frozen=True)
class Bags:
    """Which ``words`` each of the first rows holds.

    ``by_row``: sparse (row, word), a one where the row holds the word. ``by_word``: the same, compressed by word.
    """

    words: list[str]
    by_row: csr_array
    by_word: csc_array

    @property
    def rows(self) -> int:
        """How many rows have words here."""
        return len(self.by_row.indptr) - 1


def neighbours(bags: Bags) -> Neighbours:
    """Index the documents of each word. Words have no place in a document, so there is one offset."""
    return Neighbours(
        tokens=np.arange(len(bags.words), dtype=np.int32),
        at=np.empty((1, 0), np.int32),
        sorted=bags.by_word.indices[None].astype(np.int32),
        starts=bags.by_word.indptr[None].astype(np.int64),
    )


def learn(
    starts: NDArray[np.int64],
    rows: NDArray[np.integer],
    values: NDArray[np.float32],
    bags: Bags,
    visible: NDArray[np.bool_],
) -> Rules:
    """Learn the rule of each latent of a range.

    ``starts`` (latents + 1,), ``rows`` and ``values`` (entries,): the range's codes, one latent after the other.
    ``visible``: (row,) True for the rows that may be looked at.
    """
    latents = len(starts) - 1

    # Only the rows that may be looked at, numbered anew.
    open_rows = np.flatnonzero(visible[: bags.rows])
    place = np.full(len(visible), -1)
    place[open_rows] = np.arange(len(open_rows))
    held = bags.by_row[open_rows]

    latent_of = np.repeat(np.arange(latents), np.diff(starts))
    kept = place[rows] >= 0
    shape = (latents, len(open_rows))
    codes = csr_array((values[kept].astype(np.float64), (latent_of[kept], place[rows[kept]])), shape)

    latents_at_once = max(1, CELLS // max(len(bags.words), 1))
    parts = [
        _rules(codes[first : first + latents_at_once], held, first) for first in range(0, latents, latents_at_once)
    ]
    latent, word, share, value, hits = (np.concatenate(column) for column in zip(*parts, strict=True))

    order = np.lexsort((word, -hits, latent))
    return Rules(
        starts=np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=latents))]),
        offset=np.zeros(len(latent), np.int32),
        number=word[order].astype(np.int32),
        share=share[order],
        value=value[order].astype(np.float32),
        hits=hits[order],
    )


def _rules(codes: Any, held: Any, first: int) -> tuple[NDArray, ...]:
    """Learn the rules of a few latents. Returns latent, word, share, value and hits, (entries,) each, see `Rules`.

    ``codes``: sparse (latent, row). ``held``: sparse (row, word), a one where the row holds the word.
    ``first``: what is added to the latents' places to number them.
    """
    fires: Any = csr_array((np.ones(codes.nnz), codes.indices, codes.indptr), codes.shape)
    by_word, count = csr_array(held.T), np.asarray(held.sum(0))
    active, latents = np.diff(codes.indptr), codes.shape[0]

    # The rules so far.
    chosen = np.zeros((latents, held.shape[1]), bool)  # (latent, word)
    left, covered = (
        fires,
        csr_array(codes.shape),
    )  # (latent, row): active rows without a word of the rule; rows with one
    f1 = np.zeros(latents)
    hits_so_far, rows_so_far = np.zeros(latents), np.zeros(latents)  # rows covered: active ones, all

    for _ in range(MOST if held.shape[1] else 0):
        # (latent, word) F1 of the rule with one more word.
        hits, new = (left @ held).toarray(), count - (covered @ held).toarray()
        with_word = 2 * (hits_so_far[:, None] + hits) / (rows_so_far[:, None] + new + np.maximum(active, 1)[:, None])
        with_word[hits < HITS] = 0

        best = with_word.argmax(1)
        at_best = np.arange(latents), best
        better = with_word[at_best] > f1 + ENOUGH
        if not better.any():
            break

        # The word is added where it helps enough; the other rules stay as they are.
        chosen[np.flatnonzero(better), best[better]] = True
        f1 = np.where(better, with_word[at_best], f1)
        hits_so_far = np.where(better, hits_so_far + hits[at_best], hits_so_far)
        rows_so_far = np.where(better, rows_so_far + new[at_best], rows_so_far)
        taken = csr_array(diags_array(better.astype(float)) @ by_word[best])
        covered, left = covered.maximum(taken), csr_array(left - left.multiply(taken))
        left.eliminate_zeros()

    latent, word = chosen.nonzero()
    hits, total = ((matrix @ held).toarray()[latent, word] for matrix in (fires, codes))
    return latent + first, word, hits / count[word], total / count[word], hits.astype(np.int64)
