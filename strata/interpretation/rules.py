"""Token rules: an explanation of every latent that needs no language model.

A rule lists tokens. It says that a latent fires where one of them stands, or where one stands one or two places before.
It is learned from the documents of one half and scored on the other half. F1 of a set T of tokens is

    F1(T) = 2 Σ active(t) / (Σ count(t) + active)        sums over t in T

count(t) is the number of rows of token t, active(t) of those on which the latent fires, and active of all rows on which
it fires. F1 is largest for a set that begins with the token of the highest P(active | t) and goes on in that order, so
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
# For the order by P(active | token), every token counts as if it stood on this many more rows, on which the latent has
# its mean density. So a token that was seen once or twice does not come first.
DOUBT = 3.0
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

    # (offset, row) the numbers at each offset: those of the offset before, moved on by one row.
    at = [numbers]
    for _ in OFFSETS[1:]:
        at.append(np.where(begins, 0, np.roll(at[-1], 1)))

    # An index from number to rows, for each offset.
    token_count = len(distinct) + 1
    counts = [np.bincount(numbers_at, minlength=token_count) for numbers_at in at]
    return Neighbours(
        tokens=np.concatenate([[bos], distinct]).astype(np.int32),
        at=np.stack(at).astype(np.int32),
        sorted=np.stack([np.argsort(numbers_at, kind="stable") for numbers_at in at]).astype(np.int32),
        starts=np.stack([np.concatenate([[0], np.cumsum(count)]) for count in counts]),
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
    visible: NDArray[np.bool_],
) -> Rules:
    """Learn the rule of each latent of a range, which holds one or more.

    ``starts`` (latents + 1,), ``rows`` and ``values`` (entries,): the range's codes, one latent after the other.
    ``visible``: (row,) True for the rows that may be looked at.
    """
    latents_at_once = max(1, CELLS // len(near.tokens))
    parts = []
    for first in range(0, len(starts) - 1, latents_at_once):
        # The codes of some latents, on the visible rows only.
        bounds = starts[first : first + latents_at_once + 1]
        part = slice(bounds[0], bounds[-1])
        latents = len(bounds) - 1
        latent_of = np.repeat(np.arange(latents), np.diff(bounds))
        seen = visible[rows[part]]
        search = _Search(latents, latent_of[seen], rows[part][seen], values[part][seen], near, visible)
        parts.append(search.rules())

    # Put the parts one behind the other; ``starts`` counts on, all other fields are joined.
    sizes = np.concatenate([np.diff(part.starts) for part in parts])
    _, *columns = zip(*parts, strict=True)
    return Rules(np.concatenate([[0], np.cumsum(sizes)]), *map(np.concatenate, columns))


class _Search:
    """A search for the rules of a few latents, for all of them at once.

    A key stands for one latent and one token: key = latent × tokens + number of the token.

    ``latent_of``, ``rows``, ``values``: (entries,) the latent, row and activation of each active visible row.
    ``visible``: (row,) True for the rows that may be looked at.
    """

    def __init__(
        self,
        latents: int,
        latent_of: NDArray[np.int64],
        rows: NDArray[np.integer],
        values: NDArray[np.float32],
        near: Neighbours,
        visible: NDArray[np.bool_],
    ) -> None:
        self.latents, self.near, self.visible = latents, near, visible
        self.tokens = len(near.tokens)
        self.values = values
        self.active = np.bincount(latent_of, minlength=latents)  # (latents,) rows on which each fires
        self.density = self.active / max(int(visible.sum()), 1)  # (latents,)

        # For each offset: (entries,) the keys of the active rows, and (tokens,) how many visible rows each token has.
        self.keys = [latent_of * self.tokens + near.at[offset][rows] for offset in range(len(OFFSETS))]
        self.counts = [np.bincount(at[visible], minlength=self.tokens) for at in near.at]

        # The rules so far.
        self.chosen = np.zeros((len(OFFSETS), latents * self.tokens), bool)  # (offset, key) the tokens of the rules
        self.covered = np.zeros((2, 0), np.int64)  # (2, n) latent and row of all rows that the rules cover, each once
        self.hits = np.zeros(latents, np.int64)  # (latents,) how many of the covered rows are active
        self.uncovered = np.ones(len(latent_of), bool)  # (entries,) active rows that the rules do not cover yet

    def rules(self) -> Rules:
        """Take the best prefix of tokens at whichever offset is best, then a second one if that helps enough.

        The second one is at another offset: at the same one it would only make the first longer, and the longer
        prefixes there have been compared already.
        """
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
                latent = keys // self.tokens
                self._add(offset, keys[better[latent] & (best_offset[latent] == offset)])
        return self._as_rules()

    def _prefix(self, offset: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find the best prefix of tokens at ``offset`` for every latent.

        Returns the keys of the prefixes' tokens, and (latents,) F1 of the rules so far together with the prefix.
        """
        all_keys = self.latents * self.tokens

        # (key,) for the tokens that can still help: how many rows each would newly cover, active ones (hits) and all
        # (count). The count of a token leaves out its rows that the latent's rule covers already.
        active_rows = np.bincount(self.keys[offset][self.uncovered], minlength=all_keys)
        keys = np.flatnonzero(active_rows)
        latent, number = np.divmod(keys, self.tokens)
        covered_latent, covered_row = self.covered
        covered_keys = covered_latent * self.tokens + self.near.at[offset][covered_row]
        already_covered = np.bincount(covered_keys, minlength=all_keys)
        hits, count = active_rows[keys], self.counts[offset][number] - already_covered[keys]

        # Order the tokens of each latent by P(active | token), the largest first.
        share = (hits + DOUBT * self.density[latent]) / (count + DOUBT)
        order = np.lexsort((number, -share, latent))
        keys, latent, hits, count = keys[order], latent[order], hits[order], count[order]

        # (key,) F1 of the prefix that ends with this token.
        group_start = np.searchsorted(latent, np.arange(self.latents))[latent]
        hits_with_prefix = self.hits[latent] + _running_sums(hits, group_start)
        covered_rows = np.bincount(covered_latent, minlength=self.latents)
        rows_with_prefix = covered_rows[latent] + _running_sums(count, group_start)
        f1 = 2 * hits_with_prefix / (rows_with_prefix + self.active[latent])

        # Of the prefixes with the best F1, take the shortest. Where numpy assigns to a place several times, the last
        # value stays. So the ends are assigned from the longest prefix to the shortest.
        best = np.zeros(self.latents)
        np.maximum.at(best, latent, f1)
        longest_first = np.flatnonzero(f1 == best[latent])[::-1]
        end = np.full(self.latents, -1)
        end[latent[longest_first]] = longest_first
        return keys[np.arange(len(keys)) <= end[latent]], best

    def _add(self, offset: int, keys: NDArray[np.int64]) -> None:
        """Add the tokens of ``keys`` at ``offset`` to the rules."""
        self.chosen[offset, keys] = True

        # The visible rows of these tokens, with the latent of the key that each row comes from.
        latent, number = np.divmod(keys, self.tokens)
        key_place, rows = _rows_of_entries(np.full(len(keys), offset), number, self.near)
        latent_of = latent[key_place]
        latent_of, rows = latent_of[self.visible[rows]], rows[self.visible[rows]]

        # Of these, the rows that no token at another offset covers already. Tokens at the same offset cover other rows,
        # because a row has one token at an offset.
        new = np.ones(len(rows), bool)
        for other_offset in range(len(OFFSETS)):
            if other_offset != offset:
                new &= ~self.chosen[other_offset, latent_of * self.tokens + self.near.at[other_offset][rows]]
        self.covered = np.concatenate([self.covered, np.stack([latent_of[new], rows[new]])], 1)

        hit = self.uncovered & self.chosen[offset, self.keys[offset]]
        self.hits += np.bincount(self.keys[offset][hit] // self.tokens, minlength=self.latents)
        self.uncovered &= ~hit

    def _as_rules(self) -> Rules:
        """Return the rules as entries, by latent and offset, most hits first."""
        all_keys = self.latents * self.tokens
        columns = []
        for offset in range(len(OFFSETS)):
            keys = np.flatnonzero(self.chosen[offset])
            hits = np.bincount(self.keys[offset], minlength=all_keys)[keys]
            sums = np.bincount(self.keys[offset], self.values, minlength=all_keys)[keys]
            latent, number = np.divmod(keys, self.tokens)
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


def _running_sums(values: NDArray[np.int64], group_start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum up ``values`` from the beginning of each entry's group to the entry.

    ``group_start``: for each entry, the place where its group begins. Example, groups of 2: [1, 2, 5, 1]  ->
    [1, 3, 5, 6].
    """
    total = np.cumsum(values)
    return total - (total[group_start] - values[group_start])


def _rows_of_entries(
    offset: NDArray[np.integer], number: NDArray[np.integer], near: Neighbours
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """List all rows that have token ``number`` at ``offset``, for each entry in turn.

    ``offset``, ``number``: (entries,). Returns, for each pair of an entry and a row, the entry's place and the row.
    """
    # The rows of an entry are near.sorted[offset, first : first + count].
    first = near.starts[offset, number]
    count = near.starts[offset, number + 1] - first

    # Where each pair is in near.sorted: its place among all pairs, shifted from where its entry's pairs begin to first.
    pairs_before = np.cumsum(count) - count
    place = np.arange(count.sum()) + np.repeat(first - pairs_before, count)
    return np.repeat(np.arange(len(offset)), count), near.sorted[np.repeat(offset, count), place]


def predict(rules: Rules, near: Neighbours, window_of: NDArray[np.integer], windows: int) -> NDArray[np.float32]:
    """Return (latent, window): the largest activation that each rule expects in each window; 0 if it expects none.

    ``window_of``: (row,) the window that a row belongs to, -1 for none.
    """
    latents = len(rules.starts) - 1

    # For each entry of a rule and each row of its token: the entry and the row's window.
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
