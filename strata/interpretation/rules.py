"""Token rules: an explanation of every latent that needs no language model.

A rule lists tokens; it says that a latent fires where one of them stands, or stands one or two places before. It is
learned from the documents of one half and scored on the other. F1 of a set T of tokens is 2 Σ active(t) / (Σ count(t) +
active), which is largest for a set that begins with the token of the highest P(active | t) and goes on in that order.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

OFFSETS = (0, -1, -2)
WORDS = {0: "", -1: "the token before is ", -2: "two tokens before stands "}
SHOWN = 6  # tokens that a rule's text names
DOUBT = 3.0  # rows at the latent's own density that every token is thought to have been seen on besides
STEPS = 2  # sets of tokens, each at one offset, that a rule may be put together from
ENOUGH = 0.03  # F1 that the second has to add
CELLS = 2**21  # latents × tokens counted at a time, 8 bytes each, some times over


class Neighbours(NamedTuple):
    """The tokens at and before each row, by number.

    ``tokens``: (numbers,) the token id of each number. ``at``: (offset, row) the number at that row + offset; number 0,
    the token that opens a context, stands for all that lies before a segment's first row. ``sorted``:
    (offset, row) the rows by their number; ``starts``: (offset, numbers + 1) where each number's rows are in it.
    """

    tokens: NDArray[np.int32]
    at: NDArray[np.int32]
    sorted: NDArray[np.int32]
    starts: NDArray[np.int64]


def neighbours(tokens: NDArray[np.integer], segments: NDArray[np.integer], bos: int) -> Neighbours:
    """``tokens``, ``segments`` (see text.py): (row,)."""
    known, numbers = np.unique(tokens, return_inverse=True)
    numbers = numbers.astype(np.int32) + 1
    begins = np.ones(len(tokens), bool)
    begins[1:] = np.diff(segments) != 0
    at = [numbers]
    for _ in OFFSETS[1:]:  # one place further back each time
        at.append(np.where(begins, 0, np.roll(at[-1], 1)))
    size = len(known) + 1
    starts = [np.concatenate([[0], np.cumsum(np.bincount(row, minlength=size))]) for row in at]
    return Neighbours(
        np.concatenate([[bos], known]).astype(np.int32),
        np.stack(at).astype(np.int32),
        np.stack([np.argsort(row, kind="stable") for row in at]).astype(np.int32),
        np.stack(starts),
    )


class Rules(NamedTuple):
    """The rules of some latents: entries of latent j are ``starts[j] : starts[j + 1]``, by offset, most hits first.

    ``offset``, ``number`` (of the token, see Neighbours), ``share``: P(active | token) and ``value``: the mean
    activation given the token, both over the rows learned from; ``hits``: rows of the token that were active.
    """

    starts: NDArray[np.int64]
    offset: NDArray[np.int32]
    number: NDArray[np.int32]
    share: NDArray[np.float64]
    value: NDArray[np.float32]
    hits: NDArray[np.int64]


def learn(
    starts: NDArray[np.int64],
    rows: NDArray[np.integer],
    values: NDArray[np.float32],
    near: Neighbours,
    learned: NDArray[np.bool_],
) -> Rules:
    """The rule of each latent of a range.

    ``starts``, ``rows``, ``values``: the range's codes, column-wise. ``learned``: (row,) which rows may be looked at.
    """
    at_once = max(1, CELLS // len(near.tokens))
    parts = []
    for first in range(0, len(starts) - 1, at_once):
        bounds = starts[first : first + at_once + 1]
        part = slice(bounds[0], bounds[-1])
        owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        kept = learned[rows[part]]
        search = _Search(len(bounds) - 1, owner[kept], rows[part][kept], values[part][kept], near, learned)
        parts.append(search.rules())
    sizes = np.concatenate([np.diff(part.starts) for part in parts])
    columns = [np.concatenate(column) for column in list(zip(*parts, strict=True))[1:]]
    return Rules(np.concatenate([[0], np.cumsum(sizes)]), *columns)


class _Search:
    """Looks for the rules of a few latents by their active rows: ``owner``, ``rows``, ``values`` (entries,)."""

    def __init__(
        self,
        latents: int,
        owner: NDArray[np.int64],
        rows: NDArray[np.integer],
        values: NDArray[np.float32],
        near: Neighbours,
        learned: NDArray[np.bool_],
    ) -> None:
        self.latents, self.near, self.learned = latents, near, learned
        self.size = len(near.tokens)
        self.active = np.bincount(owner, minlength=latents)
        self.density = self.active / max(int(learned.sum()), 1)
        self.keys = [owner * self.size + near.at[offset][rows] for offset in range(len(OFFSETS))]
        self.values = values
        self.counts = [np.bincount(at[learned], minlength=self.size) for at in near.at]
        self.left = np.ones(len(owner), bool)  # active rows that no token of the rule covers yet
        self.covered = np.zeros((2, 0), np.int64)  # owner and row of what the rule covers
        self.hits = np.zeros(latents, np.int64)  # rows covered that are active
        self.chosen = np.zeros((len(OFFSETS), latents * self.size), bool)

    def rules(self) -> Rules:
        """Take the best prefix of tokens at whichever offset is best, then one more if that helps enough."""
        f1 = np.zeros(self.latents)
        for step in range(STEPS):
            found = [self._prefix(offset) for offset in range(len(OFFSETS))]
            best = np.stack([score for _, score in found])
            offset_of, best = best.argmax(0), best.max(0)
            better = best > f1 + ENOUGH * (step > 0)
            if not better.any():
                break
            f1 = np.where(better, best, f1)
            for offset, (keys, _) in enumerate(found):
                latent = keys // self.size
                self._add(offset, keys[better[latent] & (offset_of[latent] == offset)])
        return self._written()

    def _prefix(self, offset: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The keys (latent × size + number) of the best prefix of tokens at ``offset`` for every latent, and the F1
        of the rule with them."""
        hit = np.bincount(self.keys[offset][self.left], minlength=self.latents * self.size)
        keys = np.flatnonzero(hit)
        latent, number = np.divmod(keys, self.size)
        owner, rows = self.covered
        taken = np.bincount(owner * self.size + self.near.at[offset][rows], minlength=self.latents * self.size)
        hits, count = hit[keys], self.counts[offset][number] - taken[keys]
        share = (hits + DOUBT * self.density[latent]) / (count + DOUBT)
        order = np.lexsort((number, -share, latent))
        keys, latent, hits, count = keys[order], latent[order], hits[order], count[order]
        first = np.searchsorted(latent, np.arange(self.latents))[latent]
        said = np.bincount(owner, minlength=self.latents)
        f1 = 2 * (self.hits[latent] + _running(hits, first))
        f1 = f1 / (said[latent] + _running(count, first) + self.active[latent])
        best = np.zeros(self.latents)
        np.maximum.at(best, latent, f1)
        at_best = np.flatnonzero(f1 == best[latent])[::-1]
        end = np.full(self.latents, -1)
        end[latent[at_best]] = at_best  # the shortest of the best
        return keys[np.arange(len(keys)) <= end[latent]], best

    def _add(self, offset: int, keys: NDArray[np.int64]) -> None:
        """Take tokens into the rules."""
        self.chosen[offset, keys] = True
        latent, number = np.divmod(keys, self.size)
        entry, rows = _rows(np.full(len(keys), offset), number, self.near)
        owner = latent[entry]
        owner, rows = owner[self.learned[rows]], rows[self.learned[rows]]
        new = np.ones(len(rows), bool)
        for other in range(len(OFFSETS)):
            if other != offset:
                new &= ~self.chosen[other, owner * self.size + self.near.at[other][rows]]
        self.covered = np.concatenate([self.covered, np.stack([owner[new], rows[new]])], 1)
        hit = self.left & self.chosen[offset, self.keys[offset]]
        self.hits += np.bincount(self.keys[offset][hit] // self.size, minlength=self.latents)
        self.left &= ~hit

    def _written(self) -> Rules:
        columns = []
        for offset in range(len(OFFSETS)):
            keys = np.flatnonzero(self.chosen[offset])
            hits = np.bincount(self.keys[offset], minlength=self.latents * self.size)[keys]
            sums = np.bincount(self.keys[offset], self.values, minlength=self.latents * self.size)[keys]
            latent, number = np.divmod(keys, self.size)
            count = self.counts[offset][number]
            columns.append((latent, np.full(len(keys), offset), number, hits / count, sums / count, hits))
        latent, offset, number, share, value, hits = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.lexsort((number, -hits, offset, latent))
        return Rules(
            np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=self.latents))]),
            offset[order].astype(np.int32),
            number[order].astype(np.int32),
            share[order],
            value[order].astype(np.float32),
            hits[order],
        )


def _running(values: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Running sums that begin anew at each entry's ``first``."""
    total = np.cumsum(values)
    return total - (total[first] - values[first])


def _rows(
    offset: NDArray[np.integer], number: NDArray[np.integer], near: Neighbours
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """All rows where token ``number`` stands at ``offset``, for each entry: the entry and the row."""
    first = near.starts[offset, number]
    count = near.starts[offset, number + 1] - first
    place = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    return np.repeat(np.arange(len(offset)), count), near.sorted[np.repeat(offset, count), place]


def predict(rules: Rules, near: Neighbours, window_of: NDArray[np.integer], windows: int) -> NDArray[np.float32]:
    """(latent, window) the largest activation that each rule expects in each window; 0 where it expects none.

    ``window_of``: (row,) the window that a row belongs to, -1 for none.
    """
    latents = len(rules.starts) - 1
    entry, rows = _rows(rules.offset, rules.number, near)
    where = window_of[rows]
    entry, where = entry[where >= 0], where[where >= 0]
    owner = np.repeat(np.arange(latents), np.diff(rules.starts))[entry]
    expected = np.zeros(latents * windows, np.float32)
    np.maximum.at(expected, owner * windows + where, rules.value[entry])
    return expected.reshape(latents, windows)


def table(rules: Rules, latents: range, near: Neighbours, piece: Callable[[int], str]) -> list[dict[str, Any]]:
    """Rows of rules.parquet, one a latent and offset, of latents numbered ``latents``. ``piece``: token -> its text."""
    found = []
    for j, latent in enumerate(latents):
        for offset, part in _by_offset(rules, j):
            tokens = near.tokens[rules.number[part]].tolist()
            pieces, values = [piece(token) for token in tokens], rules.value[part].tolist()
            found.append({"latent": latent, "offset": offset, "tokens": tokens, "pieces": pieces, "values": values})
    return found


def text(rules: Rules, latent: int, near: Neighbours, piece: Callable[[int], str]) -> str | None:
    """A rule in words, e.g. `" Paris" (87 %), " London" (40 %)`; None where there is none."""
    parts = []
    for offset, part in _by_offset(rules, latent):
        tokens, shares = near.tokens[rules.number[part]][:SHOWN], rules.share[part][:SHOWN]
        names = [
            f"{json.dumps(piece(int(token)), ensure_ascii=False)} ({100 * share:.0f} %)"
            for token, share in zip(tokens, shares, strict=True)
        ]
        left = part.stop - part.start - len(names)
        parts.append(f"{WORDS[offset]}{', '.join(names)}{f' and {left} more' if left else ''}")
    return "; or ".join(parts) or None


def _by_offset(rules: Rules, latent: int) -> Iterator[tuple[int, slice]]:
    """The parts of a latent's rule: an offset, and where its entries are."""
    first, end = int(rules.starts[latent]), int(rules.starts[latent + 1])
    for number, offset in enumerate(OFFSETS):
        low, high = first + np.searchsorted(rules.offset[first:end], [number, number + 1])
        if high > low:
            yield offset, slice(int(low), int(high))
