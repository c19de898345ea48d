"""Choose the windows of text that show what a latent does.

They are its strongest windows, some from every decile of its activations, random active ones, silent ones, and near
misses. The work goes by ranges of latents. Every random choice is a hash of seed, latent and place in the text, so it
depends neither on how the latents are cut into ranges nor on the order of the work.
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
CANDIDATES = 32  # random rows that are looked at for each one wanted
ROUND, ROUNDS = 64, 32  # a latent tries this many windows in a round to find silent ones, and has this many rounds
CROWD = 8  # near misses that are looked at for each one wanted: several may lie in one document
NEAR_LATENTS = 512  # latents whose cosines with the whole pool are in memory at a time
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Examples of one kind for a range of latents, ordered by latent and rank. All arrays: (examples,).

    ``latent``: counted from the first latent of the range.
    ``row``: the row of the peak, or the middle of the window where there is no peak.
    ``first``, ``end``: the window is the rows ``first`` … ``end`` - 1.
    ``value``: the activation at the peak; 0 for silent windows and near misses.
    ``similarity``: for near misses, the cosine with what the latent fires on.
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
    """Hash each tuple of integers to a number that is uniform over 64 bits (splitmix64). ``parts`` broadcast."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def by_strength(columns: Columns) -> Ints:
    """Order the entries by latent and falling value; among equal values the earlier row comes first."""
    bits = columns.values.view(np.uint32).astype(np.uint64)  # positive floats are in the order of their bits
    key = (columns.latents().astype(np.uint64) << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - bits)
    return np.argsort(key, kind="stable")


def firsts(*keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the places at which a tuple of ``keys`` occurs for the first time. ``keys``: arrays of one length, ≥ 0."""
    combined = np.zeros(len(keys[0]), np.int64)
    for key in keys:
        combined = combined * (int(key.max(initial=0)) + 1) + key

    is_first = np.zeros(len(combined), bool)
    is_first[np.unique(combined, return_index=True)[1]] = True
    return is_first


def _first_of_each_latent(kind: str, columns: Columns, entries: Ints, text: Text, most: int) -> Found:
    """Make examples of the first ``most`` of each latent's ``entries``, which are ordered by latent."""
    latent = columns.latents()[entries]
    rank = ranks(latent)
    entries, latent, rank = entries[rank < most], latent[rank < most], rank[rank < most]

    row = columns.rows[entries]
    first, end = text.around(row)
    return Found(kind, latent, rank, row, columns.values[entries], first, end)


def top(columns: Columns, order: Ints, text: Text, knobs: Examples) -> Found:
    """Choose the strongest rows; with ``one_a_document`` the strongest row of each of the strongest documents.

    ``order``: the entries as `by_strength` orders them.
    """
    if knobs.one_a_document and len(order):
        # Entries of one latent in one document stand side by side: they are a run.
        document, latent = text.document_of(columns.rows), columns.latents()
        run = np.cumsum((np.diff(latent, prepend=-1) != 0) | (np.diff(document, prepend=-1) != 0)) - 1

        # (runs,) where in `order` the strongest entry of each run stands. NumPy keeps the last of several values that
        # are written to one place, so writing from the weakest entry to the strongest leaves the strongest.
        strongest = np.empty(run[-1] + 1, np.int64)
        strongest[run[order][::-1]] = np.arange(len(order))[::-1]
        order = order[np.sort(strongest)]
    return _first_of_each_latent("top", columns, order, text, knobs.top)


def deciles(columns: Columns, order: Ints, text: Text, knobs: Examples, seed: int) -> list[Found]:
    """Choose random rows of each tenth of a latent's active rows; decile-10 holds the strongest, as `top` does.

    ``order``: the entries as `by_strength` orders them.
    """
    active = np.diff(columns.starts)
    latent = np.repeat(np.arange(len(columns)), knobs.decile)  # (latents × decile,) which latent each wanted row is for
    number = np.tile(np.arange(knobs.decile), len(columns))  # which of the rows wanted for its latent it is

    examples = []
    for decile in range(1, DECILES + 1):
        low, high = active * (decile - 1) // DECILES, active * decile // DECILES  # ranks from the weakest
        size = (high - low)[latent]

        # One row from each of `knobs.decile` equal parts of the decile.
        part_size = np.maximum(size // max(knobs.decile, 1), 1)
        draw = mixed(seed, 1, latent + columns.first, decile, number) % part_size.astype(np.uint64)
        place = number * part_size + draw.astype(np.int64)

        rank_from_strongest = active[latent] - 1 - (low[latent] + place)
        exists = place < size  # a small decile has fewer rows than are wanted
        entries = order[(columns.starts[latent] + rank_from_strongest)[exists]]
        examples.append(_first_of_each_latent(f"decile-{decile}", columns, entries, text, knobs.decile))
    return examples


def random(columns: Columns, text: Text, shown: Found, knobs: Examples, seed: int) -> Found:
    """Choose random active rows whose windows share no row with the windows ``shown``."""
    latent, active = columns.latents(), np.diff(columns.starts)

    # Candidates: the entries with the smallest hashes, about CANDIDATES for each one wanted, in the order of the hash.
    draw = mixed(seed, 2, latent + columns.first, columns.rows)
    share = np.minimum(1.0, CANDIDATES * knobs.random / np.maximum(active, 1))[latent]
    entries = np.flatnonzero(draw.astype(np.float64) <= share * 2.0**64)
    entries = entries[np.lexsort((draw[entries], latent[entries]))]

    # The windows of a segment have one length L, so those that share a row with [first, end) begin within
    # [first - L + 1, end). A candidate stays if no shown window of its latent begins there.
    rows, base = columns.rows[entries], latent[entries] * text.rows
    first, end = text.around(rows)
    shown_begins = np.sort(shown.latent * text.rows + shown.first)
    low = np.maximum(first - (end - first) + 1, text.starts[text.segment[rows]])
    entries = entries[np.searchsorted(shown_begins, base + low) == np.searchsorted(shown_begins, base + end)]

    if knobs.one_a_document and len(entries):
        entries = entries[firsts(latent[entries], text.document_of(columns.rows[entries]))]
    return _first_of_each_latent("random", columns, entries, text, knobs.random)


def _silent_examples(
    kind: str, latent: Ints, window: Ints, text: Text, similarity: NDArray[np.float32] | None
) -> Found:
    """Make examples of grid windows in which the latent is 0. ``latent`` and ``window``: (examples,), by latent."""
    first, end = text.bounds(window)
    value = np.zeros(len(latent), np.float32)
    middle = (first + end - 1) // 2
    return Found(kind, latent, ranks(latent), middle, value, first, end, similarity)


def zeros(columns: Columns, text: Text, knobs: Examples, seed: int) -> Found:
    """Choose windows in which a latent is exactly 0 throughout, one a document as long as there are documents.

    Latent j looks through the documents in one random order, which all latents share, and begins at place
    (j · number wanted). So over a layer every document has its turn. A latent that fires almost everywhere may find
    fewer windows than are wanted. A dead latent looks for none.
    """
    first_window, windows_of = text.document_windows
    turn = np.argsort(mixed(seed, 3, text.documents), kind="stable")  # the random order of the documents
    fires_at = columns.latents() * text.rows + columns.rows  # ascending: one number for each latent and row

    searching = np.flatnonzero(np.diff(columns.starts))  # latents that want more windows
    have = np.zeros(len(columns), np.int64)  # windows that each latent has by now
    latents, windows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]

    rounds = min(ROUNDS, -(-int(windows_of.max(initial=0)) * len(turn) // ROUND))
    for tries in np.arange(rounds * ROUND).reshape(-1, ROUND) if knobs.zero else ():
        searching = searching[have[searching] < knobs.zero]
        in_layer = (searching + columns.first)[:, None]

        # (searching, ROUND) the window of each try: a random one of the next document; after all documents had their
        # turn (a cycle), the window behind the one that was tried in that document before.
        cycle, place = np.divmod(tries, len(turn))
        document = turn[(in_layer * knobs.zero + place) % len(turn)]
        draw = mixed(seed, 4, in_layer, document)
        count = windows_of[document]
        window = first_window[document] + ((draw % count.astype(np.uint64)).astype(np.int64) + cycle) % count

        # (searching, ROUND) which of them are taken: silent, not tried before, and not more than are wanted.
        first, end = text.bounds(window)
        base = searching[:, None] * text.rows
        taken = np.searchsorted(fires_at, base + first) == np.searchsorted(fires_at, base + end)
        taken &= cycle < count
        taken &= have[searching][:, None] + taken.cumsum(1) <= knobs.zero

        of_latent, of_try = taken.nonzero()
        latents.append(searching[of_latent])
        windows.append(window[of_latent, of_try])
        have[searching] += taken.sum(1)

    latent, window = np.concatenate(latents), np.concatenate(windows)
    order = np.argsort(latent, kind="stable")
    return _silent_examples("zero", latent[order], window[order], text, None)


@dataclass(frozen=True)
class Pool:
    """Grid windows that near misses are taken from.

    ``window``: (windows,) their numbers in the grid, ascending. ``vectors``: (windows, width), see `pooled`.
    """

    window: Ints
    vectors: Tensor

    def index(self, windows: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Say for each of ``windows`` where it stands in the pool, and whether it is in the pool at all."""
        place = np.minimum(np.searchsorted(self.window, windows), len(self.window) - 1)
        return place, self.window[place] == windows


def pool(activations: Activations, text: Text, most: int, seed: int) -> Pool:
    """Draw a random sample of at most ``most`` grid windows, with their vectors."""
    window = np.arange(text.windows)
    if text.windows > most:  # one window from each of `most` equal parts, so that they spread over the text
        part = np.arange(most)
        low, high = part * text.windows // most, (part + 1) * text.windows // most
        window = low + (mixed(seed, 5, part) % (high - low).astype(np.uint64)).astype(np.int64)
    return Pool(window, pooled(activations, text, window))


@torch.inference_mode()
def pooled(activations: Activations, text: Text, windows: Ints, batch: int = 512) -> Tensor:
    """Return (windows, width): the unit vector along Σ (x − mean) / ‖x − mean‖ over the rows x of each grid window.

    Each row counts the same. Otherwise an outlier row, which may be a hundred times as long as the others, would decide
    alone where the vector of its window points. ``batch``: windows whose rows are in memory at a time.
    """
    first, end = text.bounds(windows)
    vectors = torch.empty(len(windows), activations.width)
    for at in range(0, len(windows), batch):
        spans = list(zip(first[at : at + batch].tolist(), end[at : at + batch].tolist(), strict=True))
        x = torch.cat([activations.read(*span) for span in spans]).float() - activations.mean  # (rows, width)
        x /= x.norm(dim=1, keepdim=True).clamp(min=1e-30)

        window_of_row = torch.repeat_interleave(torch.tensor([end - first for first, end in spans]))
        total = torch.zeros(len(spans), activations.width).index_add_(0, window_of_row, x)
        vectors[at : at + batch] = total / total.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return vectors


@torch.inference_mode()
def near(columns: Columns, text: Text, shown: Found, there: Pool, activations: Activations, knobs: Examples) -> Found:
    """Choose the windows of the pool ``there`` that are most like those ``shown``, but leave the latent at exactly 0.

    Likeness is the cosine between a window's vector and the mean vector of the windows shown for the latent.
    """
    shown_window = text.window_of(shown.row)
    latents, windows, cosines = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]

    for low in range(0, len(columns) if knobs.near else 0, NEAR_LATENTS):
        high = min(low + NEAR_LATENTS, len(columns))
        of_block = slice(*np.searchsorted(shown.latent, [low, high]))
        queries = _queries(shown.latent[of_block] - low, shown_window[of_block], high - low, there, activations, text)

        # Nested, so that the cosines with the whole pool are freed before the next ones are computed.
        latent, window, cosine = _nearest(_silent_cosines(queries, columns, low, high, text, there), text, there, knobs)
        latents.append(latent + low)
        windows.append(window)
        cosines.append(cosine)

    return _silent_examples("near", np.concatenate(latents), np.concatenate(windows), text, np.concatenate(cosines))


def _silent_cosines(queries: Tensor, columns: Columns, low: int, high: int, text: Text, sample: Pool) -> Tensor:
    """Return (latents, windows of the pool): the cosine of each query with each window in which its latent is silent.

    −∞ stands where the latent fires anywhere in the window, and everywhere for a dead latent.
    ``queries``: (latents, width) unit vectors, one for each of the latents ``low`` … ``high`` - 1 of ``columns``.
    """
    cosine = queries @ sample.vectors.T

    active = np.diff(columns.starts[low : high + 1])  # (latents,) rows on which each fires
    latent = np.repeat(np.arange(high - low), active)
    entries = slice(columns.starts[low], columns.starts[high])
    place, in_pool = sample.index(text.window_of(columns.rows[entries]))
    cosine[torch.from_numpy(latent[in_pool]), torch.from_numpy(place[in_pool])] = -torch.inf

    cosine[torch.from_numpy(active == 0)] = -torch.inf
    return cosine


def _nearest(cosine: Tensor, text: Text, sample: Pool, knobs: Examples) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Return latent, grid window and cosine of each near miss, by latent and falling cosine.

    ``cosine``: (latents, windows of the pool), −∞ for a window that may not be taken.
    """
    best = cosine.topk(min(CROWD * knobs.near, cosine.shape[1]), dim=1)
    value, place = best.values.numpy().ravel(), best.indices.numpy().ravel()
    latent = np.repeat(np.arange(len(cosine)), best.values.shape[1])

    # topk leaves windows of equal cosine in any order; here the earlier window comes first.
    order = np.lexsort((place, -value, latent))
    order = order[np.isfinite(value[order])]
    latent, value, place = latent[order], value[order], place[order]

    if knobs.one_a_document and len(latent):
        document = text.document_of(text.bounds(sample.window[place])[0])
        first = firsts(latent, document)
        latent, value, place = latent[first], value[first], place[first]

    wanted = ranks(latent) < knobs.near
    return latent[wanted], sample.window[place[wanted]], value[wanted]


def _queries(
    latent: Ints, window: Ints, latents: int, sample: Pool, activations: Activations, text: Text, batch: int = 4096
) -> Tensor:
    """Return (latents, width): the mean vector, scaled to length 1, of the windows of each latent.

    ``latent``, ``window``: (shown,) which grid window counts for which latent. The vectors of windows that the pool
    does not hold are computed from the activations, ``batch`` windows at a time.
    """
    total = torch.zeros(latents, sample.vectors.shape[1])
    place, in_pool = sample.index(window)
    total.index_add_(0, torch.from_numpy(latent[in_pool]), sample.vectors[torch.from_numpy(place[in_pool])])

    # Several latents may show one window: its rows are read once.
    distinct, number = np.unique(window[~in_pool], return_inverse=True)
    order = np.argsort(number, kind="stable")
    owner, number = latent[~in_pool][order], number[order]
    for low in range(0, len(distinct), batch):
        vectors = pooled(activations, text, distinct[low : low + batch])
        part = slice(*np.searchsorted(number, [low, low + batch]))
        total.index_add_(0, torch.from_numpy(owner[part]), vectors[torch.from_numpy(number[part] - low)])
    return total / total.norm(dim=1, keepdim=True).clamp(min=1e-30)


def values_in(columns: Columns, found: Found, rows: int) -> tuple[Ints, NDArray[np.float32]]:
    """List the rows of all windows of ``found``, one window after the other, and the latent's code at each row.

    ``rows``: how many rows the layer has. Both results: (sum of the windows' lengths,).
    """
    length = found.end - found.first
    latent = np.repeat(found.latent, length)
    row = np.repeat(found.first, length) + ranks(np.repeat(np.arange(len(length)), length))

    # A latent and a row make one number, so that all codes are found by one binary search.
    active_key, wanted_key = columns.latents() * rows + columns.rows, latent * rows + row
    if len(active_key) == 0:
        return row, np.zeros(len(row), np.float32)
    entry = np.minimum(np.searchsorted(active_key, wanted_key), len(active_key) - 1)
    return row, np.where(active_key[entry] == wanted_key, columns.values[entry], np.float32(0))
