"""Which labels of documents a latent's strongest tokens, and its strongest documents, come from.

One label against the rest, in a 2 × 2 table for every latent and label:

    inside                 size − inside            the latent's top set
    labelled − inside      the others outside       all else that has a label

p is Fisher's exact test, one-sided: as many or more inside by chance. Tokens of one document are not independent, so
the token level calls a latent significant that fires on one word which one document repeats; the document level does
not. The control that shows it gives every document another document's label, whole documents at a time.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

SIGNIFICANT = 0.05

Table = dict[str, NDArray[Any]]


class Sets(NamedTuple):
    """A set of numbers a latent: those of latent j are ``items[starts[j] : starts[j + 1]]``."""

    starts: NDArray[np.int64]
    items: NDArray[np.int32]

    def owners(self) -> NDArray[np.int64]:
        """The latent of each item."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def enrich(
    top_rows: Sets | None,
    top_documents: Sets,
    row_document: NDArray[np.integer],
    document_label: NDArray[np.integer],
    labels: int,
    seed: int,
) -> tuple[Table, dict[str, Any]]:
    """The cells with anything inside, of both levels, by latent and label; and the numbers of the report. ``top_rows``
    None: rows are documents, and there is one level.

    ``row_document``: (row,); ``document_label``: (document,), -1 for none: those documents are left out altogether, as
    are those without a row. The table's columns: latent, level, label (its number), inside, size, labelled, total,
    odds_ratio (NaN where it is 0/0 or infinite), p, q (Benjamini and Hochberg over all cells of the level).
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
    """Cells with anything inside, how many were tested, and of how many latents.

    ``unit_label``: (unit,) the label of each thing that a set may hold, -1 for none. A cell is tested where the latent
    has a labelled unit in its set and the label a unit at all.
    """
    found = unit_label[sets.items]
    latent, found = sets.owners()[found >= 0], found[found >= 0]
    size_of = np.bincount(latent, minlength=len(sets.starts) - 1)
    labelled_of = np.bincount(unit_label[unit_label >= 0], minlength=labels)
    keys, inside = np.unique(latent * labels + found, return_counts=True)
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
    """P(as many inside, or more) for a set of ``size`` out of ``total``, of which ``labelled`` count.

    It is taken as scipy's own `fisher_exact(alternative="greater")` takes it, from the other column: P(no more of the
    rest). Few triples differ, so each is computed once.
    """
    sizes = int(size.max(initial=0)) + 1
    key = (labelled * sizes + size) * sizes + inside
    _, first, where = np.unique(key, return_index=True, return_inverse=True)
    inside, size, labelled = inside[first], size[first], labelled[first]
    return hypergeom.cdf(size - inside, total, size, total - labelled)[where]


def odds_ratio(
    inside: NDArray[np.int64], size: NDArray[np.int64], labelled: NDArray[np.int64], total: int
) -> NDArray[np.float64]:
    """(inside × others outside) / (others inside × labelled outside); NaN where that divides by zero."""
    divisor = (size - inside).astype(float) * (labelled - inside)
    outside = total - size - labelled + inside
    return np.divide(inside.astype(float) * outside, divisor, where=divisor > 0, out=np.full(len(inside), np.nan))


def q_values(p: NDArray[np.float64], tested: int) -> NDArray[np.float64]:
    """Benjamini and Hochberg's q = min over larger p of p · tested / rank. Cells that are not in ``p`` have p = 1."""
    order = np.argsort(p, kind="stable")
    q = p[order] * (tested / np.arange(1, len(p) + 1))
    q = np.minimum.accumulate(np.append(q, 1.0)[::-1])[::-1][:-1]
    return q[np.argsort(order, kind="stable")]


def _shuffled(label: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Every labelled document gets the label of another, drawn without replacement."""
    shuffled, labelled = label.copy(), np.flatnonzero(label >= 0)
    shuffled[labelled] = np.random.default_rng(seed).permutation(label[labelled])
    return shuffled


def _share(table: Table, living: int) -> float | None:
    """Share of the latents tested that have any significant label."""
    return len(np.unique(table["latent"][table["q"] < SIGNIFICANT])) / living if living else None
