"""How often, how strongly and where each latent fires, for a range of latents at a time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from strata.interpretation.read import Columns
from strata.interpretation.text import Text
from strata.interpretation.vocabulary import Bags
from strata.sae.sae import SAE

BINS = 32  # of the histogram, half an octave each
Floats = NDArray[Any]
Table = dict[str, Any]  # column -> array


def edges(largest: float) -> NDArray[Any]:
    """(BINS + 1,) the histogram's edges: half octaves down from the layer's largest activation; the first is 0."""
    found = max(largest, 1e-30) * 2.0 ** (-0.5 * np.arange(BINS, -1, -1))
    return np.concatenate([[0.0], found[1:]])


@dataclass(frozen=True)
class ByDocument:
    """A range's codes by document: one entry for each latent and document where it fires, ordered by both in rows.

    ``latent`` (counted from the range's first), ``document``; ``mean`` over all rows of the document, ``max``.
    """

    latent: NDArray[np.int64]
    document: NDArray[np.int32]
    mean: NDArray[np.float64]
    max: NDArray[np.float32]


def by_document(columns: Columns, text: Text) -> ByDocument:
    """A document's rows follow one another, so a latent's entries in it do."""
    latent, document = columns.latents(), text.document_of(columns.rows)
    if len(latent) == 0:
        return ByDocument(latent, document, np.empty(0), columns.values)
    begins = np.ones(len(latent), bool)
    begins[1:] = (np.diff(latent) != 0) | (np.diff(document) != 0)
    first = begins.nonzero()[0]
    total = np.add.reduceat(columns.values.astype(np.float64), first)
    mean = total / text.document_rows[document[first]]
    return ByDocument(latent[first], document[first], mean, np.maximum.reduceat(columns.values, first))


def entropies(latent: NDArray[np.int64], mass: Floats, latents: int) -> tuple[Floats, Floats]:
    """Entropy and varentropy, in nats and nats², of each latent's positive ``mass`` over documents.

    p = mass / Σ mass;  H = −Σ p ln p;  V = Σ p (ln p)² − H²,  the variance of −ln p. Both are 0 for a latent without
    mass. Every document twice adds ln 2 to H and nothing to V.
    """
    total = np.bincount(latent, mass, latents)
    p = mass / total[latent]
    entropy = np.bincount(latent, -p * np.log(p), latents)
    return entropy, np.maximum(np.bincount(latent, p * np.log(p) ** 2, latents) - entropy**2, 0.0)


def statistics(columns: Columns, spread: ByDocument, text: Text, bins: Floats) -> Table:
    """The columns of `statistics.parquet` that the codes give."""
    size, latent = len(columns), columns.latents()
    active = np.diff(columns.starts)
    total = np.bincount(latent, columns.values, size)
    mean = total / np.maximum(active, 1)
    density = active / text.rows
    largest = np.zeros(size, np.float32)
    np.maximum.at(largest, spread.latent, spread.max)
    entropy, varentropy = entropies(spread.latent, spread.mean, size)
    place = np.clip(np.searchsorted(bins, columns.values, side="left") - 1, 0, BINS - 1)
    return {
        "latent": np.arange(columns.first, columns.first + size, dtype=np.int32),
        "active": active,
        "density": density,
        "mean": mean,
        "max": largest,
        "documents": np.bincount(spread.latent, minlength=size),
        "entropy": entropy,
        "entropy_share": entropy / np.log(len(text.documents)) if len(text.documents) > 1 else np.full(size, np.nan),
        "varentropy": varentropy,
        "dead": active == 0,
        "histogram": np.bincount(latent * BINS + place, minlength=size * BINS).reshape(size, BINS),
    }


def geometry(sae: SAE) -> Table:
    """Norms of each latent's encoder and decoder weights, and their cosine."""
    read = sae.directions_read()
    encoder, decoder = read.norm(dim=1), sae.decoder.norm(dim=1)
    cosine = (read * sae.decoder).sum(1) / (encoder * decoder).clamp(min=1e-30)
    return {
        name: value.float().cpu().numpy()
        for name, value in {
            "encoder_norm": encoder,
            "decoder_norm": decoder,
            "encoder_decoder_cosine": cosine,
        }.items()
    }


def importance(statistics: Table) -> Floats:
    """(latent,) density × mean when active × norm of the decoder's row: how much each writes, on the mean row. Codes
    alone would not do, since an SAE that was not trained here may have rows of any norm."""
    return statistics["density"] * statistics["mean"] * statistics["decoder_norm"]


def token_counts(text: Text, vocabulary: int, block: int = 1 << 22) -> NDArray[np.int64]:
    """(vocabulary,) on how many rows each token stands."""
    counts = np.zeros(vocabulary, np.int64)
    for first in range(0, text.rows, block):
        counts += np.bincount(text.token[first : first + block], minlength=vocabulary)
    return counts


def token_statistics(columns: Columns, text: Text, background: NDArray[np.int64], most: int) -> Table:
    """The tokens that say most of where a latent fires, at most ``most`` a latent: see :func:`_telling`."""
    vocabulary, active = len(background), np.diff(columns.starts)
    key = columns.latents() * vocabulary + text.token[columns.rows]
    order = np.argsort(key, kind="stable")
    begins = np.flatnonzero(np.diff(key[order], prepend=-1))
    latent, token = np.divmod(key[order[begins]], vocabulary)
    count = np.diff(begins, append=len(key))
    total = np.add.reduceat(columns.values[order].astype(np.float64), begins) if len(begins) else np.empty(0)
    return _telling(latent, token, count, total, active, background, text.rows, columns.first, most)


def word_statistics(columns: Columns, bags: Bags, most: int) -> Table:
    """The same of the words of documents, over the rows that ``bags`` have: a word's rows are the documents with it."""
    kept = columns.rows < bags.rows
    place, shape = (columns.latents()[kept], columns.rows[kept]), (len(columns), bags.rows)
    total = csr_array(csr_array((columns.values[kept].astype(np.float64), place), shape) @ bags.by_row)
    count = csr_array(csr_array((np.ones(kept.sum()), place), shape) @ bags.by_row)
    total.sort_indices()
    count.sort_indices()
    active = np.bincount(place[0], minlength=len(columns))
    latent = np.repeat(np.arange(len(columns)), np.diff(count.indptr))
    background = np.diff(bags.by_word.indptr)
    return _telling(latent, count.indices, count.data, total.data, active, background, bags.rows, columns.first, most)


def _telling(
    latent: NDArray[Any],
    token: NDArray[Any],
    count: NDArray[Any],
    total: Floats,
    active: NDArray[Any],
    background: NDArray[Any],
    rows: int,
    first: int,
    most: int,
) -> Table:
    """The entries (latent, token, on how many active rows, summed activation there) that say most, ``most`` a latent.

    share = P(token | active), background = P(token), lift = share / background. They are ranked by share · ln lift,
    what the token adds to the divergence of the two: a rare token with a high lift does not come first by luck.
    log_odds: ln of the odds of the token where the latent is active, over its odds elsewhere, 1/2 added to each count.
    """
    a, b, n = active[latent], background[token], rows
    share, expected = count / a, b / n
    gain = share * np.log(share / expected)
    best = np.lexsort((token, -gain, latent))
    best = best[gain[best] > 0]
    rank = ranks(latent[best])
    best, rank = best[rank < most], rank[rank < most]
    latent, token, count, total, share, expected, a, b = (
        x[best] for x in (latent, token, count, total, share, expected, a, b)
    )
    inside, outside = (count + 0.5) / (a - count + 0.5), (b - count + 0.5) / (n - a - b + count + 0.5)
    return {
        "latent": (latent + first).astype(np.int32),
        "rank": rank.astype(np.int32),
        "token": token.astype(np.int32),
        "count": count.astype(np.int64),
        "share": share,
        "background": expected,
        "lift": share / expected,
        "log_odds": np.log(inside / outside),
        "mean": total / count,
    }


def ranks(sorted_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2 … within each run of equal keys."""
    begins = np.flatnonzero(np.diff(sorted_keys, prepend=-1))
    return np.arange(len(sorted_keys)) - np.repeat(begins, np.diff(begins, append=len(sorted_keys)))
