"""Token rules: an explanation of every latent that needs no language model.

A rule lists tokens. It says that a latent fires where one of them stands, or where one stands one or two places before.
It is learned from the documents of one half and scored on the other half. F1 of a set T of tokens is

    F1(T) = 2 Σ active(t) / (Σ count(t) + active)        sums over t in T

with count(t) the rows of token t, active(t) those of them on which the latent fires, and active all rows on which it
fires. F1 is largest for a set that begins with the token of the highest P(active | t) and goes on in that order, so
only the prefixes of this order need to be compared.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

OFFSETS = (0, -1, -2)
WORDS = {0: "", -1: "the token before is ", -2: "two tokens before stands "}
SHOWN = 6  # tokens that the text of a rule names
DOUBT = 3.0  # every token counts as if it stood on this many more rows, active at the latent's own density
STEPS = 2  # a rule is put together from at most so many sets of tokens, each at one offset
ENOUGH = 0.03  # F1 that the second set has to add
CELLS = 2**21  # latents × tokens that are counted at a time, 8 bytes each, in several arrays


class Neighbours(NamedTuple):
    """The tokens at and before each row. Each distinct token has a number.

    ``tokens``: (numbers,) the token id of each number.
    ``at``: (offset, row) the number of the token that stands at that row + offset. Number 0, the token that opens a
    context, stands for all that lies before the first row of a segment.
    ``sorted``: (offset, row) the rows, ordered by the number at that offset.
    ``starts``: (offset, numbers + 1) where in ``sorted`` the rows of each number begin.
    """

    tokens: NDArray[np.int32]
    at: NDArray[np.int32]
    sorted: NDArray[np.int32]
    starts: NDArray[np.int64]


def neighbours(tokens: NDArray[np.integer], segments: NDArray[np.integer], bos: int) -> Neighbours:
    """Index the tokens at and before each row.

    ``tokens``, ``segments``: (row,), see text.py. ``bos``: the token that opens a context.
    """
    distinct, numbers = np.unique(tokens, return_inverse=True)
    numbers = numbers.astype(np.int32) + 1  # 0 is for what lies before a segment
    begins = np.ones(len(tokens), bool)
    begins[1:] = np.diff(segments) != 0

    at = [numbers]
    for _ in OFFSETS[1:]:  # one place further back each time
        at.append(np.where(begins, 0, np.roll(at[-1], 1)))

    size = len(distinct) + 1
    starts = [np.concatenate([[0], np.cumsum(np.bincount(row, minlength=size))]) for row in at]
    return Neighbours(
        tokens=np.concatenate([[bos], distinct]).astype(np.int32),
        at=np.stack(at).astype(np.int32),
        sorted=np.stack([np.argsort(row, kind="stable") for row in at]).astype(np.int32),
        starts=np.stack(starts),
    )


class Rules(NamedTuple):
    """The rules of some latents. An entry is one token at one offset.

    ``starts``: (latents + 1,) the entries of latent j are ``starts[j] : starts[j + 1]``, by offset, most hits first.
    All others (entries,), over the rows that the rule was learned from:
    ``offset``: the place in OFFSETS. ``number``: of the token, see Neighbours. ``share``: P(active | token).
    ``value``: the mean activation on the rows of the token. ``hits``: how many rows of the token were active.
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
    """Learn the rule of each latent of a range.

    ``starts`` (latents + 1,), ``rows`` and ``values`` (entries,): the range's codes, one latent after the other.
    ``learned``: (row,) which rows may be looked at.
    """
    latents_at_once = max(1, CELLS // len(near.tokens))
    parts = []
    for first in range(0, len(starts) - 1, latents_at_once):
        bounds = starts[first : first + latents_at_once + 1]
        part = slice(bounds[0], bounds[-1])
        owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        kept = learned[rows[part]]
        search = _Search(len(bounds) - 1, owner[kept], rows[part][kept], values[part][kept], near, learned)
        parts.append(search.rules())

    sizes = np.concatenate([np.diff(part.starts) for part in parts])
    columns = [np.concatenate(column) for column in list(zip(*parts, strict=True))[1:]]
    return Rules(np.concatenate([[0], np.cumsum(sizes)]), *columns)


class _Search:
    """A search for the rules of a few latents. A key is latent × size + number: one latent and one token.

    ``owner``, ``rows``, ``values``: (entries,) the latent, row and activation of each active row.
    ``learned``: (row,) which rows may be looked at.
    """

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
        self.values = values
        self.active = np.bincount(owner, minlength=latents)  # (latents,)
        self.density = self.active / max(int(learned.sum()), 1)  # (latents,)
        self.keys = [owner * self.size + near.at[offset][rows] for offset in range(len(OFFSETS))]  # (entries,) each
        self.counts = [np.bincount(at[learned], minlength=self.size) for at in near.at]  # (numbers,) rows of each

        # The rules so far.
        self.left = np.ones(len(owner), bool)  # (entries,) active rows that no token of the rule covers yet
        self.covered = np.zeros((2, 0), np.int64)  # latent and row of all that the rules cover, each once
        self.hits = np.zeros(latents, np.int64)  # (latents,) rows covered that are active
        self.chosen = np.zeros((len(OFFSETS), latents * self.size), bool)  # (offset, key) what the rules hold

    def rules(self) -> Rules:
        """Take the best prefix of tokens at whichever offset is best, then a second one if that helps enough."""
        f1 = np.zeros(self.latents)
        for step in range(STEPS):
            prefixes = [self._prefix(offset) for offset in range(len(OFFSETS))]
            scores = np.stack([score for _, score in prefixes])  # (offset, latent)
            best_offset, best_score = scores.argmax(0), scores.max(0)
            better = best_score > f1 + ENOUGH * (step > 0)
            if not better.any():
                break

            f1 = np.where(better, best_score, f1)
            for offset, (keys, _) in enumerate(prefixes):
                latent = keys // self.size
                self._add(offset, keys[better[latent] & (best_offset[latent] == offset)])
        return self._written()

    def _prefix(self, offset: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find the best prefix of tokens at ``offset`` for every latent.

        Returns the keys of the prefixes' tokens, and (latents,) F1 of the rules so far together with the prefix.
        """
        # Rows of each token that the rule does not cover yet: active ones (hits) and all (count). (keys,)
        active_rows = np.bincount(self.keys[offset][self.left], minlength=self.latents * self.size)
        keys = np.flatnonzero(active_rows)
        latent, number = np.divmod(keys, self.size)
        owner, rows = self.covered
        taken = np.bincount(owner * self.size + self.near.at[offset][rows], minlength=self.latents * self.size)
        hits, count = active_rows[keys], self.counts[offset][number] - taken[keys]

        # The order of P(active | token). DOUBT keeps tokens that were seen once or twice from coming first.
        share = (hits + DOUBT * self.density[latent]) / (count + DOUBT)
        order = np.lexsort((number, -share, latent))
        keys, latent, hits, count = keys[order], latent[order], hits[order], count[order]

        # F1 of every prefix.
        first = np.searchsorted(latent, np.arange(self.latents))[latent]
        covered = np.bincount(owner, minlength=self.latents)
        f1 = 2 * (self.hits[latent] + _running_sums(hits, first))
        f1 = f1 / (covered[latent] + _running_sums(count, first) + self.active[latent])

        # Of prefixes with the best F1 the shortest: it is written last, so it stays.
        best = np.zeros(self.latents)
        np.maximum.at(best, latent, f1)
        at_best = np.flatnonzero(f1 == best[latent])[::-1]
        end = np.full(self.latents, -1)
        end[latent[at_best]] = at_best
        return keys[np.arange(len(keys)) <= end[latent]], best

    def _add(self, offset: int, keys: NDArray[np.int64]) -> None:
        """Add the tokens of ``keys`` at ``offset`` to the rules."""
        self.chosen[offset, keys] = True

        # The rows that these tokens cover, without those that tokens at other offsets cover already.
        latent, number = np.divmod(keys, self.size)
        entry, rows = _rows_of_entries(np.full(len(keys), offset), number, self.near)
        owner = latent[entry]
        owner, rows = owner[self.learned[rows]], rows[self.learned[rows]]
        new = np.ones(len(rows), bool)
        for other_offset in range(len(OFFSETS)):
            if other_offset != offset:
                new &= ~self.chosen[other_offset, owner * self.size + self.near.at[other_offset][rows]]
        self.covered = np.concatenate([self.covered, np.stack([owner[new], rows[new]])], 1)

        hit = self.left & self.chosen[offset, self.keys[offset]]
        self.hits += np.bincount(self.keys[offset][hit] // self.size, minlength=self.latents)
        self.left &= ~hit

    def _written(self) -> Rules:
        """Return the rules as entries, by latent and offset, most hits first."""
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
            starts=np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=self.latents))]),
            offset=offset[order].astype(np.int32),
            number=number[order].astype(np.int32),
            share=share[order],
            value=value[order].astype(np.float32),
            hits=hits[order],
        )


def _running_sums(values: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum up ``values`` from the beginning of each entry's group to the entry. ``first``: where its group begins."""
    total = np.cumsum(values)
    return total - (total[first] - values[first])


def _rows_of_entries(
    offset: NDArray[np.integer], number: NDArray[np.integer], near: Neighbours
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """List all rows that have token ``number`` at ``offset``, for each entry in turn.

    ``offset``, ``number``: (entries,). Returns, for each pair of an entry and a row, the entry's place and the row.
    """
    first = near.starts[offset, number]
    count = near.starts[offset, number + 1] - first
    place = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)  # in near.sorted
    return np.repeat(np.arange(len(offset)), count), near.sorted[np.repeat(offset, count), place]


def predict(rules: Rules, near: Neighbours, window_of: NDArray[np.integer], windows: int) -> NDArray[np.float32]:
    """Return (latent, window): the largest activation that each rule expects in each window; 0 if it expects none.

    ``window_of``: (row,) the window that a row belongs to, -1 for none.
    """
    latents = len(rules.starts) - 1
    entry, rows = _rows_of_entries(rules.offset, rules.number, near)
    window = window_of[rows]
    entry, window = entry[window >= 0], window[window >= 0]

    latent = np.repeat(np.arange(latents), np.diff(rules.starts))[entry]
    expected = np.zeros(latents * windows, np.float32)
    np.maximum.at(expected, latent * windows + window, rules.value[entry])
    return expected.reshape(latents, windows)


def table(rules: Rules, latents: range, near: Neighbours, piece: Callable[[int], str]) -> list[dict[str, Any]]:
    """Return the rows of rules.parquet, one for each latent and offset.

    ``latents``: the numbers of the latents in the layer. ``piece``: token -> its text.
    """
    rows = []
    for j, latent in enumerate(latents):
        for offset, part in _by_offset(rules, j):
            tokens = near.tokens[rules.number[part]].tolist()
            pieces, values = [piece(token) for token in tokens], rules.value[part].tolist()
            rows.append({"latent": latent, "offset": offset, "tokens": tokens, "pieces": pieces, "values": values})
    return rows


def text(rules: Rules, latent: int, near: Neighbours, piece: Callable[[int], str]) -> str | None:
    """Put a rule in words, e.g. `" Paris" (87 %), " London" (40 %)`; None if the latent has no rule.

    ``latent``: its place in ``rules``. ``piece``: token -> its text.
    """
    parts = []
    for offset, part in _by_offset(rules, latent):
        tokens, shares = near.tokens[rules.number[part]][:SHOWN], rules.share[part][:SHOWN]
        names = [
            f"{json.dumps(piece(int(token)), ensure_ascii=False)} ({100 * share:.0f} %)"
            for token, share in zip(tokens, shares, strict=True)
        ]
        unnamed = part.stop - part.start - len(names)
        parts.append(f"{WORDS[offset]}{', '.join(names)}{f' and {unnamed} more' if unnamed else ''}")
    return "; or ".join(parts) or None


def _by_offset(rules: Rules, latent: int) -> Iterator[tuple[int, slice]]:
    """Yield each offset at which the rule of a latent names tokens, and where the entries of that offset are."""
    first, end = int(rules.starts[latent]), int(rules.starts[latent + 1])
    for number, offset in enumerate(OFFSETS):
        low, high = first + np.searchsorted(rules.offset[first:end], [number, number + 1])
        if high > low:
            yield offset, slice(int(low), int(high))
