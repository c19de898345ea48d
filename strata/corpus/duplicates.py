"""Near-duplicates: documents whose sets of 5-word shingles overlap, measured by their exact Jaccard index.

MinHash signatures that are cut into bands find the candidates (Broder 1997; Leskovec, Rajaraman, Ullman, ch. 3), and
only candidates are compared. Memory: 4 bytes for each word of each document that is kept, and about 2 kB a document.
"""

import unicodedata
import zlib

import numpy as np
import regex
from numpy.typing import NDArray

SHINGLE = 5  # words
BANDS = 20  # of a signature
MISSED = 0.001  # the chance that a pair exactly at the threshold never becomes a candidate

# A word is one letter of a script that puts no spaces between words, or one sign (+, an emoji; #%&*/@\ count as signs,
# not as punctuation), together with the marks that belong to it (vowel signs, tones); or else a run of letters and
# digits.
_SPACELESS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
WORDS = regex.compile(
    rf"(?:{_SPACELESS}|[\p{{S}}#%&*/@\\])[\p{{M}}\p{{Cf}}]*|(?:(?!{_SPACELESS})[\p{{L}}\p{{N}}\p{{M}}_])+"
)
_CHUNK = 4096  # shingles hashed at once


class NearDuplicates:
    """Says, document by document, whether an earlier document is nearly the same.

    Two documents are near-duplicates if the Jaccard index of their shingles is at least ``threshold``. The answers
    depend only on the documents and their order.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._rows = _band_rows(threshold)

        # Hash function i of a shingle s is mix(factors[i] · s + offsets[i]). The seed is fixed and no param, because
        # candidates are compared exactly.
        random = np.random.default_rng(0)
        self._factors = random.integers(1, 2**63, BANDS * self._rows, dtype=np.uint64) * 2 + 1
        self._offsets = random.integers(0, 2**63, BANDS * self._rows, dtype=np.uint64)

        self._kept: list[NDArray[np.uint32]] = []  # the shingles of each document that is kept
        # For each band: the band of a signature -> the kept documents that have it.
        self._buckets: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]

    def seen(self, text: str) -> bool:
        """Say whether an earlier document is nearly the same as ``text``; if none is, remember this one."""
        shingles = shingle(text)
        bands = self._bands(shingles)
        candidates = {
            document for bucket, band in zip(self._buckets, bands, strict=True) for document in bucket.get(band, ())
        }
        if any(jaccard(shingles, self._kept[document]) >= self.threshold for document in candidates):
            return True

        for bucket, band in zip(self._buckets, bands, strict=True):
            bucket.setdefault(band, []).append(len(self._kept))
        self._kept.append(shingles)
        return False

    def _bands(self, shingles: NDArray[np.uint32]) -> list[bytes]:
        """Compute the MinHash signature of a document, cut into BANDS bands: the lowest hash by each hash function."""
        lowest = np.full(len(self._factors), 2**64 - 1, np.uint64)
        for start in range(0, len(shingles), _CHUNK):
            chunk = shingles[start : start + _CHUNK, None].astype(np.uint64)
            hashes = _mix(chunk * self._factors + self._offsets)  # (shingle, function); wraps modulo 2^64, as intended
            lowest = np.minimum(lowest, hashes.min(axis=0))
        return [band.tobytes() for band in lowest.reshape(BANDS, self._rows)]


def shingle(text: str) -> NDArray[np.uint32]:
    """Hash all runs of 5 words, case and punctuation aside; return the set of hashes (shingles,), sorted.

    A text of fewer words is one shingle. In a text of nothing but punctuation, each run of marks counts as a word.
    """
    folded = unicodedata.normalize("NFC", text).lower()
    words = WORDS.findall(folded) or folded.split()
    word_hashes = np.array([zlib.crc32(word.encode()) for word in words], np.uint64)

    runs = max(1, len(word_hashes) - SHINGLE + 1)
    run_hashes = np.zeros(runs, np.uint64)
    for place in range(min(SHINGLE, len(word_hashes))):
        run_hashes = _mix(run_hashes + word_hashes[place : place + runs])
    return np.unique((run_hashes >> np.uint64(32)).astype(np.uint32))


def jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Compute |A ∩ B| / |A ∪ B| of two sets, which are given as arrays without repeats."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def _band_rows(threshold: float) -> int:
    """Compute the most rows that a band may have for a pair at the threshold to be missed with a chance of MISSED.

    Two documents of Jaccard index s agree in a band of r rows with the chance s^r, and in none of the BANDS bands with
    the chance (1 − s^r)^BANDS. More rows mean fewer candidates to compare.
    """
    fits = [rows for rows in range(1, 9) if (1 - threshold**rows) ** BANDS <= MISSED]
    return max(fits, default=1)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of each number, by a part of MurmurHash3's finaliser."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return x ^ (x >> np.uint64(33))
