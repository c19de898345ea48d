"""Near-duplicates: documents whose sets of 5-word shingles overlap, measured by their exact Jaccard index.

MinHash signatures cut into bands find the candidates (Broder 1997; Leskovec, Rajaraman, Ullman, ch. 3); only candidates
are compared. Memory: 4 bytes for each word of each document that is kept, and some 2 kB a document.
"""

import unicodedata
import zlib

import numpy as np
import regex
from numpy.typing import NDArray

SHINGLE = 5
BANDS = 20
MISSED = 0.001  # the chance that a pair exactly at the threshold never becomes a candidate

# What counts as a word: one letter of a script that puts no spaces between words, or one sign (+, an emoji; #%&*/@\ are
# no punctuation here), each with the marks that belong to it (vowel signs, tones); else a run of letters and digits.
_SPACELESS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
WORDS = regex.compile(
    rf"(?:{_SPACELESS}|[\p{{S}}#%&*/@\\])[\p{{M}}\p{{Cf}}]*|(?:(?!{_SPACELESS})[\p{{L}}\p{{N}}\p{{M}}_])+"
)
_CHUNK = 4096  # shingles hashed at once


class NearDuplicates:
    """Asked document by document whether an earlier one is nearly the same; the answers depend on nothing else."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._rows = _band_rows(threshold)
        random = np.random.default_rng(0)  # the hash functions, not a choice: the answers are exact
        self._factors = random.integers(1, 2**63, BANDS * self._rows, dtype=np.uint64) * 2 + 1
        self._offsets = random.integers(0, 2**63, BANDS * self._rows, dtype=np.uint64)
        self._kept: list[NDArray[np.uint32]] = []
        self._buckets: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]

    def seen(self, text: str) -> bool:
        """Whether a document like this one was here; if not, it is remembered."""
        shingles = shingle(text)
        bands = self._bands(shingles)
        near = {number for bucket, key in zip(self._buckets, bands, strict=True) for number in bucket.get(key, ())}
        if any(jaccard(shingles, self._kept[number]) >= self.threshold for number in near):
            return True
        for bucket, key in zip(self._buckets, bands, strict=True):
            bucket.setdefault(key, []).append(len(self._kept))
        self._kept.append(shingles)
        return False

    def _bands(self, shingles: NDArray[np.uint32]) -> list[bytes]:
        lowest = np.full(len(self._factors), 2**64 - 1, np.uint64)
        for start in range(0, len(shingles), _CHUNK):
            some = shingles[start : start + _CHUNK, None].astype(np.uint64)
            hashed = _mix(some * self._factors + self._offsets)  # wraps modulo 2^64, as is meant
            lowest = np.minimum(lowest, hashed.min(axis=0))
        return [band.tobytes() for band in lowest.reshape(BANDS, self._rows)]


def shingle(text: str) -> NDArray[np.uint32]:
    """The set of hashes of all runs of 5 words, case and punctuation aside; a shorter text is one shingle.

    A text of nothing but punctuation is one shingle too, its marks as they stand.
    """
    folded = unicodedata.normalize("NFC", text).lower()
    found = WORDS.findall(folded) or folded.split()
    words = np.array([zlib.crc32(word.encode()) for word in found], np.uint64)
    runs = max(1, len(words) - SHINGLE + 1)
    hashed = np.zeros(runs, np.uint64)
    for place in range(min(SHINGLE, len(words))):
        hashed = _mix(hashed + words[place : place + runs])
    return np.unique((hashed >> np.uint64(32)).astype(np.uint32))


def jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted sets."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def _band_rows(threshold: float) -> int:
    """The most rows a band can have, so that a pair at the threshold is still missed with a chance below MISSED."""
    fits = [rows for rows in range(1, 9) if (1 - threshold**rows) ** BANDS <= MISSED]
    return max(fits, default=1)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread the bits: the finaliser of MurmurHash3."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return x ^ (x >> np.uint64(33))
