"""Compute how often, how strongly and where each latent fires, for a range of latents at a time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from strata.interpretation.read import Columns
from strata.interpretation.text import Text
from strata.interpretation.word_rules import Bags
from strata.sae.sae import SAE

BINS = 32  # bins of the histogram, each half an octave wide
Floats = NDArray[Any]
Table = dict[str, Any]  # column -> array


def edges(largest: float) -> NDArray[Any]:
    """Return (BINS + 1,) the edges of the histogram, ascending.

    They go down from ``largest``, the layer's largest activation, by half octaves. The lowest edge is 0, so that the
    first bin holds all smaller activations.
    """
    half_octaves = max(largest, 1e-30) * 2.0 ** (-0.5 * np.arange(BINS, -1, -1))
    return np.concatenate([[0.0], half_octaves[1:]])


@dataclass(frozen=True)
class ByDocument:
    """A range's codes by document: one entry for each latent and each document where it fires.

    The entries are ordered by latent, then by where the document's rows lie. All (entries,):
    ``latent``: counted from the first latent of the range. ``document``: its number in the corpus.
    ``mean``: the mean activation over all rows of the document, silent ones too. ``max``: the largest activation.
    """

    latent: NDArray[np.int64]
    document: NDArray[np.int32]
    mean: NDArray[np.float64]
    max: NDArray[np.float32]


def by_document(columns: Columns, text: Text) -> ByDocument:
    """Group the codes of a range by latent and document.

    The rows of a document follow one another, so the entries of a latent in a document stand side by side.
    """
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
    """Compute the entropy H (nats) and varentropy V (nats²) of how each latent's mass spreads over documents.

    p = mass / Σ mass;  H = −Σ p ln p;  V = Σ p (ln p)² − H²,  the variance of −ln p

    Both are 0 for a latent without mass. If every document came twice, H would grow by ln 2 and V would stay.
    ``latent``, ``mass``: (entries,), one for each latent and document, mass above 0. ``latents``: how many there are.
    Returns H and V, (latents,) each.
    """
    total = np.bincount(latent, mass, latents)
    p = mass / total[latent]
    entropy = np.bincount(latent, -p * np.log(p), latents)
    return entropy, np.maximum(np.bincount(latent, p * np.log(p) ** 2, latents) - entropy**2, 0.0)


def statistics(columns: Columns, spread: ByDocument, text: Text, bins: Floats) -> Table:
    """Compute the columns of `statistics.parquet` that follow from the codes.

    ``spread``: the codes by document. ``bins``: the edges of the histogram, see `edges`.
    """
    size, latent = len(columns), columns.latents()
    active = np.diff(columns.starts)
    total = np.bincount(latent, columns.values, size)
    mean = total / np.maximum(active, 1)
    density = active / text.rows
    largest = np.zeros(size, np.float32)
    np.maximum.at(largest, spread.latent, spread.max)

    entropy, varentropy = entropies(spread.latent, spread.mean, size)
    bin_of = np.clip(np.searchsorted(bins, columns.values, side="left") - 1, 0, BINS - 1)  # (entries,)
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
        "histogram": np.bincount(latent * BINS + bin_of, minlength=size * BINS).reshape(size, BINS),
    }


def geometry(sae: SAE) -> Table:
    """Compute the norms of each latent's encoder and decoder weights, and the cosine between the two."""
    read = sae.directions_read()
    encoder, decoder = read.norm(dim=1), sae.decoder.norm(dim=1)
    cosine = (read * sae.decoder).sum(1) / (encoder * decoder).clamp(min=1e-30)

    columns = {"encoder_norm": encoder, "decoder_norm": decoder, "encoder_decoder_cosine": cosine}
    return {name: value.float().cpu().numpy() for name, value in columns.items()}


def importance(statistics: Table) -> Floats:
    """Return (latent,): how much each latent writes on an average row.

    It is density × mean activation when active × norm of its decoder row. The norm belongs to it, since the decoder
    rows of an imported SAE may have any norm.
    """
    return statistics["density"] * statistics["mean"] * statistics["decoder_norm"]


def token_counts(text: Text, vocabulary: int, block: int = 1 << 22) -> NDArray[np.int64]:
    """Return (vocabulary,): on how many rows each token stands. ``block``: rows that are counted at a time."""
    counts = np.zeros(vocabulary, np.int64)
    for first in range(0, text.rows, block):
        counts += np.bincount(text.token[first : first + block], minlength=vocabulary)
    return counts


def token_statistics(columns: Columns, text: Text, background: NDArray[np.int64], most: int) -> Table:
    """Choose the tokens that say most about where a latent fires, at most ``most`` a latent: see `_telling`.

    ``background``: (vocabulary,) on how many rows each token stands.
    """
    vocabulary, active = len(background), np.diff(columns.starts)

    # Entries of one latent and token become a group.
    key = columns.latents() * vocabulary + text.token[columns.rows]
    order = np.argsort(key, kind="stable")
    begins = np.flatnonzero(np.diff(key[order], prepend=-1))
    latent, token = np.divmod(key[order[begins]], vocabulary)
    count = np.diff(begins, append=len(key))
    total = np.add.reduceat(columns.values[order].astype(np.float64), begins) if len(begins) else np.empty(0)

    return _telling(
        latent=latent,
        token=token,
        count=count,
        total=total,
        active=active,
        background=background,
        rows=text.rows,
        first=columns.first,
        most=most,
    )


def word_statistics(columns: Columns, bags: Bags, most: int) -> Table:
    """Choose the words that say most about where a latent fires, if rows are documents: see `_telling`.

    Only the rows that ``bags`` has count. The rows of a word are the documents that hold it.
    """
    kept = columns.rows < bags.rows
    latent, row = columns.latents()[kept], columns.rows[kept]
    active = np.bincount(latent, minlength=len(columns))

    # (latent, word) the summed activation on the documents with the word, and the number of active ones among them.
    shape = (len(columns), bags.rows)
    total = csr_array(csr_array((columns.values[kept].astype(np.float64), (latent, row)), shape) @ bags.by_row)
    count = csr_array(csr_array((np.ones(kept.sum()), (latent, row)), shape) @ bags.by_row)
    total.sort_indices()
    count.sort_indices()

    return _telling(
        latent=np.repeat(np.arange(len(columns)), np.diff(count.indptr)),
        token=count.indices,
        count=count.data,
        total=total.data,
        active=active,
        background=np.diff(bags.by_word.indptr),
        rows=bags.rows,
        first=columns.first,
        most=most,
    )


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
    """Choose the tokens that say most about where each latent fires, at most ``most`` a latent.

    share = P(token | active), background = P(token), lift = share / background. Tokens are ranked by share · ln lift,
    which is what the token adds to the divergence of the two distributions. So a rare token with a high lift does not
    come first by luck. log_odds: ln of the odds of the token on the latent's active rows over its odds on the other
    rows, with 1/2 added to each count.

    ``latent``, ``token``: (entries,) one entry for each latent and token that meet, by latent.
    ``count``, ``total``: (entries,) on how many active rows the token stands, and the summed activation there.
    ``active``: (latents,) on how many rows each latent fires. ``background``: (tokens,) on how many each token stands.
    ``rows``: how many there are in all. ``first``: the number, in the layer, of the range's first latent.
    """
    active_rows, token_rows = active[latent], background[token]  # (entries,)
    share, expected = count / active_rows, token_rows / rows
    gain = share * np.log(share / expected)

    best = np.lexsort((token, -gain, latent))
    best = best[gain[best] > 0]
    rank = ranks(latent[best])
    best, rank = best[rank < most], rank[rank < most]
    latent, token, count, total = latent[best], token[best], count[best], total[best]
    share, expected, active_rows, token_rows = share[best], expected[best], active_rows[best], token_rows[best]

    odds_active = (count + 0.5) / (active_rows - count + 0.5)
    odds_silent = (token_rows - count + 0.5) / (rows - active_rows - token_rows + count + 0.5)
    return {
        "latent": (latent + first).astype(np.int32),
        "rank": rank.astype(np.int32),
        "token": token.astype(np.int32),
        "count": count.astype(np.int64),
        "share": share,
        "background": expected,
        "lift": share / expected,
        "log_odds": np.log(odds_active / odds_silent),
        "mean": total / count,
    }


def ranks(sorted_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count 0, 1, 2 … within each run of equal keys."""
    begins = np.flatnonzero(np.diff(sorted_keys, prepend=-1))
    return np.arange(len(sorted_keys)) - np.repeat(begins, np.diff(begins, append=len(sorted_keys)))
