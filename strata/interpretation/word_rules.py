"""Rules for documents: a latent fires on those that hold one of a few words.

As in rules.py the words are learned from the documents of one half and scored on the other. The word that raises F1
most over those chosen before comes next; a document counts once, however many of them it holds.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from strata.interpretation.rules import Neighbours, Rules
from strata.interpretation.vocabulary import Bags

MOST = 8  # words of a rule
ENOUGH = 0.01  # F1 that each has to add
HITS = 3  # documents where it fires that a word must be of: fewer say little
CELLS = 2**21  # latents × words at a time, 8 bytes each, some times over


def neighbours(bags: Bags) -> Neighbours:
    """Where each word is; words have no place in a document, so there is one offset."""
    return Neighbours(
        np.arange(len(bags.words), dtype=np.int32),
        np.empty((1, 0), np.int32),
        bags.by_word.indices[None].astype(np.int32),
        bags.by_word.indptr[None].astype(np.int64),
    )


def learn(
    starts: NDArray[np.int64],
    rows: NDArray[np.integer],
    values: NDArray[np.float32],
    bags: Bags,
    learned: NDArray[np.bool_],
) -> Rules:
    """The rule of each latent of a range. ``starts``, ``rows``, ``values``: its codes, column-wise; ``learned``: (row,)
    which rows may be looked at."""
    latents = len(starts) - 1
    open_ = np.flatnonzero(learned[: bags.rows])
    place = np.full(len(learned), -1)
    place[open_] = np.arange(len(open_))
    owner = np.repeat(np.arange(latents), np.diff(starts))
    kept = place[rows] >= 0
    shape = (latents, len(open_))
    codes = csr_array((values[kept].astype(np.float64), (owner[kept], place[rows[kept]])), shape)
    held = bags.by_row[open_]
    at_once = max(1, CELLS // max(len(bags.words), 1))
    parts = [_rules(codes[first : first + at_once], held, first) for first in range(0, latents, at_once)]
    latent, word, share, value, hits = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((word, -hits, latent))
    return Rules(
        np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=latents))]),
        np.zeros(len(latent), np.int32),
        word[order].astype(np.int32),
        share[order],
        value[order].astype(np.float32),
        hits[order],
    )


def _rules(codes: Any, held: Any, first: int) -> tuple[NDArray, ...]:
    """Latent (counted from ``first``), word, share, value and hits of every entry.

    Sparse: ``codes`` (latent, row), ``held`` (row, word) of ones.
    """
    fires: Any = csr_array((np.ones(codes.nnz), codes.indices, codes.indptr), codes.shape)
    by_word, count = csr_array(held.T), np.asarray(held.sum(0))
    active, latents = np.diff(codes.indptr), codes.shape[0]
    chosen = np.zeros((latents, held.shape[1]), bool)
    left, covered = fires, csr_array(codes.shape)  # active rows without a word of the rule, and rows with one
    f1, caught, said = np.zeros(latents), np.zeros(latents), np.zeros(latents)
    for _ in range(MOST if held.shape[1] else 0):
        hits, new = (left @ held).toarray(), count - (covered @ held).toarray()
        gained = 2 * (caught[:, None] + hits) / (said[:, None] + new + np.maximum(active, 1)[:, None])
        gained[hits < HITS] = 0
        best = gained.argmax(1)
        at = np.arange(latents), best
        better = gained[at] > f1 + ENOUGH
        if not better.any():
            break
        chosen[np.flatnonzero(better), best[better]] = True
        f1, caught, said = (
            np.where(better, then, now)
            for then, now in ((gained[at], f1), (caught + hits[at], caught), (said + new[at], said))
        )
        taken = csr_array(diags_array(better.astype(float)) @ by_word[best])
        covered, left = covered.maximum(taken), csr_array(left - left.multiply(taken))
        left.eliminate_zeros()
    latent, word = chosen.nonzero()
    hits, total = ((matrix @ held).toarray()[latent, word] for matrix in (fires, codes))
    return latent + first, word, hits / count[word], total / count[word], hits.astype(np.int64)
