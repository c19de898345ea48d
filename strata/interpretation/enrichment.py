"""Find the labels of documents that a latent's strongest tokens, and its strongest documents, come from.

A 2 × 2 table for every latent and label sets one label against the rest:

    inside                 size − inside            the latent's top set
    labelled − inside      the others outside       all else that has a label

p is from Fisher's exact test, one-sided: the probability of as many or more inside by chance. The tokens of one
document are not independent. So the token level calls a latent significant that fires on one word which one document
repeats; the document level does not. A control shows this: it gives every document, as a whole, the label of another.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

SIGNIFICANT = 0.05

Table = dict[str, NDArray[Any]]


class Sets(NamedTuple):
    """One set of numbers for each latent. The set of latent j is ``items[starts[j] : starts[j + 1]]``."""

    starts: NDArray[np.int64]
    items: NDArray[np.int32]

    def owners(self) -> NDArray[np.int64]:
        """Return the latent of each item."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def enrich(
    top_rows: Sets | None,
    top_documents: Sets,
    row_document: NDArray[np.integer],
    document_label: NDArray[np.integer],
    labels: int,
    seed: int,
) -> tuple[Table, dict[str, Any]]:
    """Test every latent for every label, at the level of tokens and at the level of documents.

    ``top_rows``: the strongest rows of each latent; None if rows are documents, and then there is one level.
    ``top_documents``: the strongest documents of each latent. ``row_document``: (row,) the document of each row.
    ``document_label``: (document,), -1 for none; documents without a label and those without a row are left out.

    Returns the cells with anything inside, by latent and label, and the numbers for the report. The columns: latent,
    level, label (its number), inside, size, labelled, total, odds_ratio (NaN where it is 0/0 or infinite), p, and q
    (Benjamini and Hochberg over all cells of the level).
    """
    label = document_label.astype(np.int64)
    present = np.bincount(row_document, minlength=len(label)) > 0
    label = np.where(present, label, -1)
    shuffled = _shuffled(label, seed)

    every_document = np.arange(len(label))
    tables, report = [], {}
    for level, sets, units in (("token", top_rows, row_document), ("document", top_documents, every_document)):
        if sets is None:
            continue
        table, tested, living = cells(sets, label[units], labels)
        control, _, _ = cells(sets, shuffled[units], labels)

        tables.append({"level": np.full(len(table["p"]), level, object), **table})
        report[level] = {
            "cells": tested,
            "latents": living,
            "significant": _share(table, living),
            "significant_chance": _share(control, living),
        }
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}, report


def cells(sets: Sets, unit_label: NDArray[np.int64], labels: int) -> tuple[Table, int, int]:
    """Return the cells with anything inside, how many cells were tested, and for how many latents.

    A unit is what a set may hold: a row or a document. ``unit_label``: (unit,) its label, -1 for none. A cell, one
    latent and one label, is tested if the latent has a labelled unit in its set and the label has any unit.
    """
    item_label = unit_label[sets.items]
    latent, item_label = sets.owners()[item_label >= 0], item_label[item_label >= 0]
    size_of = np.bincount(latent, minlength=len(sets.starts) - 1)  # (latent,) labelled units in its set
    labelled_of = np.bincount(unit_label[unit_label >= 0], minlength=labels)  # (label,) units with it

    keys, inside = np.unique(latent * labels + item_label, return_counts=True)
    latent, label = np.divmod(keys, labels)
    size, labelled, total = size_of[latent], labelled_of[label], int(labelled_of.sum())

    living = int((size_of > 0).sum())
    tested = living * int((labelled_of > 0).sum())
    p = fisher(inside, size, labelled, total)
    table = {
        "latent": latent,
        "label": label,
        "inside": inside,
        "size": size,
        "labelled": labelled,
        "total": np.full(len(keys), total),
        "odds_ratio": odds_ratio(inside, size, labelled, total),
        "p": p,
        "q": q_values(p, tested),
    }
    return table, tested, living


def fisher(
    inside: NDArray[np.int64], size: NDArray[np.int64], labelled: NDArray[np.int64], total: int
) -> NDArray[np.float64]:
    """Return P(``inside`` or more are labelled) for a random set of ``size`` out of ``total``, ``labelled`` of them.

    ``inside``, ``size``, ``labelled``: (cell,). As scipy's own `fisher_exact(alternative="greater")` does, it computes
    the same probability from the units without the label: P(at most size − inside of them). Many cells have the same
    three numbers, so each triple is computed once.
    """
    sizes = int(size.max(initial=0)) + 1
    triple = (labelled * sizes + size) * sizes + inside
    _, first, triple_of_cell = np.unique(triple, return_index=True, return_inverse=True)
    inside, size, labelled = inside[first], size[first], labelled[first]
    return hypergeom.cdf(size - inside, total, size, total - labelled)[triple_of_cell]


def odds_ratio(
    inside: NDArray[np.int64], size: NDArray[np.int64], labelled: NDArray[np.int64], total: int
) -> NDArray[np.float64]:
    """Return (inside × others outside) / (others inside × labelled outside); NaN where that divides by zero."""
    divisor = (size - inside).astype(float) * (labelled - inside)
    outside = total - size - labelled + inside
    return np.divide(inside.astype(float) * outside, divisor, where=divisor > 0, out=np.full(len(inside), np.nan))


def q_values(p: NDArray[np.float64], tested: int) -> NDArray[np.float64]:
    """Return Benjamini and Hochberg's q: the smallest p · tested / rank over this and all larger p.

    ``p``: (cell,). ``tested``: how many cells were tested; those that are not in ``p`` have p = 1.
    """
    order = np.argsort(p, kind="stable")
    q = p[order] * (tested / np.arange(1, len(p) + 1))
    q = np.minimum.accumulate(np.append(q, 1.0)[::-1])[::-1][:-1]
    return q[np.argsort(order, kind="stable")]


def _shuffled(label: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Permute the labels among the labelled documents at random."""
    shuffled, labelled = label.copy(), np.flatnonzero(label >= 0)
    shuffled[labelled] = np.random.default_rng(seed).permutation(label[labelled])
    return shuffled


def _share(table: Table, living: int) -> float | None:
    """Return the share of the tested latents that have any significant label; None if there are none."""
    return len(np.unique(table["latent"][table["q"] < SIGNIFICANT])) / living if living else None
