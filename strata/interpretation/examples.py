"""Where to look at a latent: its strongest windows, some of every decile, random ones, silent ones, near misses.

A range of latents at a time. Every random choice goes by a hash of seed, latent and place, so that it depends neither
on the ranges nor on an order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.interpretation.knobs import Examples
from strata.interpretation.read import Columns
from strata.interpretation.statistics import ranks
from strata.interpretation.text import Text
from strata.rows.shards import Activations

DECILES = 10
KINDS = ("top", *(f"decile-{n}" for n in range(1, DECILES + 1)), "random", "zero", "near")
CANDIDATES = 32  # random rows looked at for each one wanted
ROUND, ROUNDS = 64, 32  # zero windows are looked for in so many windows at a time, so many times
CROWD = 8  # near misses looked at for each one wanted, because of those in one document
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Examples of a range of latents, ordered by latent and rank. ``latent``: counted from the range's first.

    ``row``: of the peak, or the middle of the window where there is none. ``first``, ``end``: the window's rows.
    ``value``: at the peak; for near misses 0, and ``similarity`` says how near.
    """

    kind: str
    latent: Ints
    rank: Ints
    row: Ints
    value: NDArray[np.float32]
    first: Ints
    end: Ints
    similarity: NDArray[np.float32] | None = None


def mixed(*parts: Ints | int) -> NDArray[np.uint64]:
    """A hash of each tuple of integers (splitmix64), uniform over 64 bits."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def by_strength(columns: Columns) -> Ints:
    """The entries ordered by latent and falling value; of equals, the earlier row first."""
    bits = columns.values.view(np.uint32).astype(np.uint64)  # positive floats are in the order of their bits
    key = (columns.latents().astype(np.uint64) << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - bits)
    return np.argsort(key, kind="stable")


def firsts(*keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Which places hold the first of their tuple of ``keys``, which are not negative."""
    whole = np.zeros(len(keys[0]), np.int64)
    for key in keys:
        whole = whole * (int(key.max(initial=0)) + 1) + key
    first = np.zeros(len(whole), bool)
    first[np.unique(whole, return_index=True)[1]] = True
    return first


def _found(kind: str, columns: Columns, entries: Ints, text: Text, most: int) -> Found:
    """The first ``most`` of each latent's ``entries``, which are ordered by latent."""
    latent = columns.latents()[entries]
    rank = ranks(latent)
    entries, latent, rank = entries[rank < most], latent[rank < most], rank[rank < most]
    row = columns.rows[entries]
    return Found(kind, latent, rank, row, columns.values[entries], *text.around(row))


def top(columns: Columns, order: Ints, text: Text, knobs: Examples) -> Found:
    """The strongest rows; with ``one_a_document`` the strongest row of each of the strongest documents."""
    if knobs.one_a_document and len(order):
        document, latent = text.document_of(columns.rows), columns.latents()
        run = np.cumsum((np.diff(latent, prepend=-1) != 0) | (np.diff(document, prepend=-1) != 0)) - 1
        best = np.empty(run[-1] + 1, np.int64)
        best[run[order][::-1]] = np.arange(len(order))[::-1]  # of repeated places the last writing stands: the best
        order = order[np.sort(best)]
    return _found("top", columns, order, text, knobs.top)


def deciles(columns: Columns, order: Ints, text: Text, knobs: Examples, seed: int) -> list[Found]:
    """Random rows of each tenth of a latent's active rows; decile-10 holds the strongest, as `top` does."""
    active, found = np.diff(columns.starts), []
    latent = np.repeat(np.arange(len(columns)), knobs.decile)
    number = np.tile(np.arange(knobs.decile), len(columns))
    for decile in range(1, DECILES + 1):
        low, high = active * (decile - 1) // DECILES, active * decile // DECILES  # ranks from the weakest
        size = (high - low)[latent]
        step = np.maximum(size // max(knobs.decile, 1), 1)  # one in each of `decile` equal parts
        draw = mixed(seed, 1, latent + columns.first, decile, number) % step.astype(np.uint64)
        place = number * step + draw.astype(np.int64)
        there = place < size
        rank = active[latent] - 1 - (low[latent] + place)
        entries = order[(columns.starts[latent] + rank)[there]]
        found.append(_found(f"decile-{decile}", columns, entries, text, knobs.decile))
    return found


def random(columns: Columns, text: Text, shown: Found, knobs: Examples, seed: int) -> Found:
    """Random active rows whose windows share nothing with those ``shown``."""
    latent, active = columns.latents(), np.diff(columns.starts)
    drawn = mixed(seed, 2, latent + columns.first, columns.rows)
    share = np.minimum(1.0, CANDIDATES * knobs.random / np.maximum(active, 1))[latent]
    entries = np.flatnonzero(drawn.astype(np.float64) <= share * 2.0**64)
    entries = entries[np.lexsort((drawn[entries], latent[entries]))]
    rows, base = columns.rows[entries], latent[entries] * text.rows
    first, end = text.around(rows)
    taken = np.sort(shown.latent * text.rows + shown.first)  # windows of a segment are of one length
    low = np.maximum(first - (end - first) + 1, text.starts[text.segment[rows]])
    entries = entries[np.searchsorted(taken, base + low) == np.searchsorted(taken, base + end)]
    if knobs.one_a_document and len(entries):
        entries = entries[firsts(latent[entries], text.document_of(columns.rows[entries]))]
    return _found("random", columns, entries, text, knobs.random)


def _windows(kind: str, latent: Ints, window: Ints, text: Text, similarity: NDArray[np.float32] | None) -> Found:
    first, end = text.bounds(window)
    silent = np.zeros(len(latent), np.float32)
    return Found(kind, latent, ranks(latent), (first + end - 1) // 2, silent, first, end, similarity)


def zeros(columns: Columns, text: Text, knobs: Examples, seed: int) -> Found:
    """Windows in which a latent is exactly 0 throughout, one a document as long as there are documents.

    Latent j looks through the documents in one random order, from the (j · number wanted)-th on, so that over a layer
    all documents have their turn. A latent that fires almost everywhere may find fewer, and a dead one looks for none.
    """
    first_window, number = text.document_windows
    turn = np.argsort(mixed(seed, 3, text.documents), kind="stable")
    key = columns.latents() * text.rows + columns.rows
    latent = np.flatnonzero(np.diff(columns.starts))
    have, found = np.zeros(len(columns), np.int64), []
    rounds = min(ROUNDS, -(-int(number.max(initial=0)) * len(turn) // ROUND))
    for step in np.arange(rounds * ROUND).reshape(-1, ROUND) if knobs.zero else ():
        latent = latent[have[latent] < knobs.zero]
        cycle, place = np.divmod(step, len(turn))
        document = turn[((latent + columns.first)[:, None] * knobs.zero + place) % len(turn)]
        draw = mixed(seed, 4, (latent + columns.first)[:, None], document)
        at = ((draw % number[document].astype(np.uint64)).astype(np.int64) + cycle) % number[document]
        window = first_window[document] + at
        first, end = text.bounds(window)
        base = latent[:, None] * text.rows
        silent = np.searchsorted(key, base + first) == np.searchsorted(key, base + end)
        silent &= cycle < number[document]  # each window once
        silent &= have[latent][:, None] + silent.cumsum(1) <= knobs.zero
        rows, columns_ = silent.nonzero()
        found.append((latent[rows], window[rows, columns_]))
        have[latent] += silent.sum(1)
    pairs = [np.concatenate(part) for part in zip(*found, strict=True)] if found else [np.empty(0, np.int64)] * 2
    order = np.argsort(pairs[0], kind="stable")
    return _windows("zero", pairs[0][order], pairs[1][order], text, None)


@dataclass(frozen=True)
class Pool:
    """Grid windows that near misses are taken from: their numbers, ascending, and their vectors (window, width)."""

    window: Ints
    vectors: Tensor

    def index(self, windows: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Where windows stand in the pool, and whether they do."""
        at = np.minimum(np.searchsorted(self.window, windows), len(self.window) - 1)
        return at, self.window[at] == windows


def pool(activations: Activations, text: Text, most: int, seed: int) -> Pool:
    """A random sample of at most ``most`` grid windows, with their vectors."""
    window = np.arange(text.windows)
    if text.windows > most:  # spread over the text: one of each of `most` equal parts
        part = np.arange(most)
        low, high = part * text.windows // most, (part + 1) * text.windows // most
        window = low + (mixed(seed, 5, part) % (high - low).astype(np.uint64)).astype(np.int64)
    return Pool(window, pooled(activations, text, window))


@torch.inference_mode()
def pooled(activations: Activations, text: Text, windows: Ints, batch: int = 512) -> Tensor:
    """(window, width) the unit vector along Σ (x − mean) / ‖x − mean‖ over a window's rows.

    Each row counts the same: an outlier row, a hundred times as long, would be all that is seen of its window.
    """
    first, end = text.bounds(windows)
    out = torch.empty(len(windows), activations.width)
    for at in range(0, len(windows), batch):
        spans = list(zip(first[at : at + batch].tolist(), end[at : at + batch].tolist(), strict=True))
        x = torch.cat([activations.read(*span) for span in spans]).float() - activations.mean
        x /= x.norm(dim=1, keepdim=True).clamp(min=1e-30)
        owner = torch.repeat_interleave(torch.tensor([end - first for first, end in spans]))
        total = torch.zeros(len(spans), activations.width).index_add_(0, owner, x)
        out[at : at + batch] = total / total.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return out


@torch.inference_mode()
def near(columns: Columns, text: Text, shown: Found, there: Pool, activations: Activations, knobs: Examples) -> Found:
    """Windows of the pool most like the ``shown`` ones, by cosine, in which the latent is exactly 0 throughout."""
    chosen, block = [], 512
    window = text.window_of(shown.row)
    for low in range(0, len(columns) if knobs.near else 0, block):
        high = min(low + block, len(columns))
        mine = slice(*np.searchsorted(shown.latent, [low, high]))
        likeness = _queries(shown.latent[mine] - low, window[mine], high - low, there, activations, text)
        likeness = likeness @ there.vectors.T
        part = slice(columns.starts[low], columns.starts[high])
        at, known = there.index(text.window_of(columns.rows[part]))
        owner = np.repeat(np.arange(high - low), np.diff(columns.starts[low : high + 1]))
        likeness[torch.from_numpy(owner[known]), torch.from_numpy(at[known])] = -torch.inf
        alive = np.diff(columns.starts[low : high + 1]) > 0
        likeness[~torch.from_numpy(alive)] = -torch.inf
        best = likeness.topk(min(CROWD * knobs.near, likeness.shape[1]), dim=1)
        value, place = best.values.numpy(), best.indices.numpy()
        owner = np.broadcast_to(np.arange(high - low)[:, None], place.shape)
        order = np.lexsort((place.ravel(), -value.ravel(), owner.ravel()))
        owner, value, place = owner.ravel()[order], value.ravel()[order], place.ravel()[order]
        keep = np.isfinite(value)
        if knobs.one_a_document and len(owner):
            document = text.document_of(text.bounds(there.window[place])[0])
            owner, value, place, document = owner[keep], value[keep], place[keep], document[keep]
            keep = firsts(owner, document) if len(owner) else keep[:0]
        owner, value, place = owner[keep], value[keep], place[keep]
        few = ranks(owner) < knobs.near
        chosen.append((owner[few] + low, there.window[place[few]], value[few]))
    if not chosen:
        return _windows("near", np.empty(0, np.int64), np.empty(0, np.int64), text, np.empty(0, np.float32))
    latent, window, value = (np.concatenate(part) for part in zip(*chosen, strict=True))
    return _windows("near", latent, window, text, value)


def _queries(
    latent: Ints, window: Ints, latents: int, there: Pool, activations: Activations, text: Text, batch: int = 4096
) -> Tensor:
    """(latents, width) the mean vector, of length 1, of the windows of each latent; those not in the pool are read."""
    total = torch.zeros(latents, there.vectors.shape[1])
    at, known = there.index(window)
    total.index_add_(0, torch.from_numpy(latent[known]), there.vectors[torch.from_numpy(at[known])])
    distinct, number = np.unique(window[~known], return_inverse=True)
    order = np.argsort(number, kind="stable")
    owner, number = latent[~known][order], number[order]
    for low in range(0, len(distinct), batch):
        vectors = pooled(activations, text, distinct[low : low + batch])
        part = slice(*np.searchsorted(number, [low, low + batch]))
        total.index_add_(0, torch.from_numpy(owner[part]), vectors[torch.from_numpy(number[part] - low)])
    return total / total.norm(dim=1, keepdim=True).clamp(min=1e-30)


def values_in(columns: Columns, found: Found, rows: int) -> tuple[Ints, NDArray[np.float32]]:
    """The rows of all windows, one after the other, and the latent's code at each. ``rows``: of the layer."""
    length = found.end - found.first
    latent = np.repeat(found.latent, length)
    row = np.repeat(found.first, length) + ranks(np.repeat(np.arange(len(length)), length))
    key = columns.latents() * rows + columns.rows
    at = np.minimum(np.searchsorted(key, latent * rows + row), max(len(key) - 1, 0))
    if len(key) == 0:
        return row, np.zeros(len(row), np.float32)
    return row, np.where(key[at] == latent * rows + row, columns.values[at], np.float32(0))
