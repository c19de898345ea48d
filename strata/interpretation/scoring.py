"""Score how well an explanation says where a latent fires, on windows of documents that the explainer never saw.

A window is a run of tokens of one context. The explanation has to guess the latent's largest activation in it: whether
it is above 0 (detection: F1, balanced accuracy), and how large it is (Pearson, Spearman). The chance level is measured,
not assumed: the explanation of another latent judges the same windows.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from strata.interpretation.text import Text

SCORES = ("f1", "balanced_accuracy", "pearson", "spearman")
RESAMPLES = 2000  # how often the bootstrap draws anew

Floats = NDArray[np.floating]
Embed = Callable[[Sequence[str]], Floats]  # texts -> unit vectors


class Windows(NamedTuple):
    """Windows of text, numbered in order of their rows.

    ``first``, ``end``: (window,) the window is the rows ``first`` … ``end`` - 1. ``document``: (window,) its document.
    ``of_row``: (row,) the window that each row lies in, -1 for none.
    """

    first: NDArray[np.int64]
    end: NDArray[np.int64]
    document: NDArray[np.int64]
    of_row: NDArray[np.int32]


def halves(documents: int, seed: int) -> NDArray[np.bool_]:
    """Return (document,): True for the half that explainers learn from, False for the half that they are scored on."""
    shown = np.zeros(documents, bool)
    shown[np.random.default_rng([seed, documents]).permutation(documents)[: documents // 2]] = True
    return shown


def cut(text: Text, chosen: NDArray[np.bool_], rows: int) -> Windows:
    """Return the grid windows of the first ``rows`` rows that lie in the documents ``chosen``, a mask (document,).

    Windows of less than half the usual length say little and are left out.
    """
    first, end = text.bounds(np.arange(text.windows))
    document = text.document_of(first)
    kept = chosen[document] & (end <= rows) & (2 * (end - first) >= text.window)

    # The windows kept are numbered anew, and every row gets the number of its window.
    number = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    of_row = np.repeat(number, end - first)[:rows]
    return Windows(first[kept], end[kept], document[kept].astype(np.int64), of_row)


def strongest(
    starts: NDArray[np.int64], rows: NDArray[np.integer], values: NDArray[np.float32], windows: Windows
) -> NDArray[np.float32]:
    """Return (latent, window): the largest activation of each latent of a range in each window.

    ``starts`` (latents + 1,), ``rows`` and ``values`` (entries,): the range's codes, one latent after the other.
    """
    latents = len(starts) - 1
    largest = np.zeros((latents, len(windows.first)), np.float32)
    latent, window = np.repeat(np.arange(latents), np.diff(starts)), windows.of_row[rows]
    inside = window >= 0
    np.maximum.at(largest, (latent[inside], window[inside]), values[inside])
    return largest


def draw(strengths: NDArray[np.float32], items: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw the windows to score one latent on: first those where it fires, then as many where it is silent.

    The order of the firing windows by strength is cut into equal parts, and one window is drawn from each, so that weak
    and strong ones are judged. The silent ones are any. ``strengths``: (window,) the latent's largest activation.
    There are ``items`` // 2 of each kind, or as many as the rarer kind has; so there are none if one kind is missing.
    """
    firing, silent = np.flatnonzero(strengths > 0), np.flatnonzero(strengths <= 0)
    half = min(items // 2, len(firing), len(silent))

    ordered = firing[np.argsort(strengths[firing], kind="stable")]
    edges = np.arange(half + 1) * len(ordered) // max(half, 1)
    picked = ordered[random.integers(edges[:-1], edges[1:])]
    return np.concatenate([picked, random.choice(silent, half, replace=False)])


def strangers(texts: Sequence[str], random: np.random.Generator) -> list[int | None]:
    """Draw for each of ``texts`` another one that says something else; None where all say the same."""
    words = [bare(text) for text in texts]
    drawn = []
    for own in words:
        others = [other for other, there in enumerate(words) if there != own]
        drawn.append(others[random.integers(len(others))] if others else None)
    return drawn


def bare(text: str) -> str:
    """Return the words of ``text`` in lower case, without marks and signs between them."""
    return " ".join(re.findall(r"\w+", text.lower()))


def score(truth: Floats, said: Floats) -> dict[str, float | None]:
    """Compute the scores of one latent; None where a score is undefined.

    ``truth``: (item,) the latent's largest activation in each window. ``said``: (item,) what the explanation says of
    it, above 0 if the latent fires; NaN means that there was no answer, and the item is left out.
    """
    answered = ~np.isnan(said)
    truth, said = truth[answered].astype(float), said[answered].astype(float)

    fires, guessed = truth > 0, said > 0
    hits, wrong = int((fires & guessed).sum()), int((fires ^ guessed).sum())
    recalls = [float((guessed[fires == kind] == kind).mean()) for kind in (True, False) if (fires == kind).any()]

    return {
        "f1": 2 * hits / (2 * hits + wrong) if hits + wrong else None,
        "balanced_accuracy": sum(recalls) / 2 if len(recalls) == 2 else None,
        "pearson": pearson(truth, said),
        "spearman": pearson(rankdata(truth), rankdata(said)),
    }


def pearson(x: Floats, y: Floats) -> float | None:
    """Return the correlation of ``x`` and ``y``; None if one of them is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def auc(positive: NDArray[np.bool_], values: Floats) -> float | None:
    """Return P(the value of a positive item is above that of a negative item); ties count half.

    None if there are only positive or only negative items. ``positive``, ``values``: (item,).
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    ranks = rankdata(values)[positive]
    return float((ranks.sum() - positives * (positives + 1) / 2) / (positives * negatives))


def summary(scores: Sequence[float | None], chance: Sequence[float | None], seed: int) -> dict[str, float | int | None]:
    """Sum up one score over latents: its mean, its chance level, and their difference.

    ``low`` and ``high`` of the result: the 95 % bootstrap interval of the difference, over latents. Only latents for
    which both the score and its chance level are defined count.
    """
    pairs = [
        (own, by_luck) for own, by_luck in zip(scores, chance, strict=True) if own is not None and by_luck is not None
    ]
    if not pairs:
        return {"latents": 0, "mean": None, "chance": None, "difference": None, "low": None, "high": None}

    own_scores, chance_scores = np.array(pairs).T
    gain, random = own_scores - chance_scores, np.random.default_rng(seed)
    means = [gain[random.integers(0, len(gain), len(gain))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "latents": len(pairs),
        "mean": float(own_scores.mean()),
        "chance": float(chance_scores.mean()),
        "difference": float(gain.mean()),
        "low": float(low),
        "high": float(high),
    }
