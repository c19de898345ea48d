"""How well an explanation says where a latent fires, on windows of documents that the explainer never saw.

A window is a run of tokens of one context. What is to be guessed is the latent's largest activation in it: above 0 or
not (detection: F1, balanced accuracy), and how large (Pearson, Spearman). What an explanation would reach by luck is
measured, not assumed: the same windows are also judged by another latent's explanation, drawn without fixed points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from strata.interpretation.text import Text

SCORES = ("f1", "balanced_accuracy", "pearson", "spearman")
RESAMPLES = 2000  # of the bootstrap

Floats = NDArray[np.floating]


class Windows(NamedTuple):
    """``first``, ``end``: (window,) rows; ``document``: (window,); ``of_row``: (row,) the window of a row, -1: none."""

    first: NDArray[np.int64]
    end: NDArray[np.int64]
    document: NDArray[np.int64]
    of_row: NDArray[np.int32]


def halves(documents: int, seed: int) -> NDArray[np.bool_]:
    """(document,) True for the half that explainers learn from; the other half is scored on."""
    shown = np.zeros(documents, bool)
    shown[np.random.default_rng([seed, documents]).permutation(documents)[: documents // 2]] = True
    return shown


def cut(text: Text, chosen: NDArray[np.bool_], rows: int) -> Windows:
    """The grid windows of the first ``rows`` rows that lie in documents ``chosen`` (document,).

    Those of less than half the usual length are left out: they say little.
    """
    first, end = text.bounds(np.arange(text.windows))
    document = text.document_of(first)
    kept = chosen[document] & (end <= rows) & (2 * (end - first) >= text.window)
    number = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    of_row = np.repeat(number, end - first)[:rows]
    return Windows(first[kept], end[kept], document[kept].astype(np.int64), of_row)


def strongest(
    starts: NDArray[np.int64], rows: NDArray[np.integer], values: NDArray[np.float32], windows: Windows
) -> NDArray[np.float32]:
    """(latent, window) the largest activation of each latent of a range in each window."""
    latents = len(starts) - 1
    largest = np.zeros((latents, len(windows.first)), np.float32)
    owner, where = np.repeat(np.arange(latents), np.diff(starts)), windows.of_row[rows]
    np.maximum.at(largest, (owner[where >= 0], where[where >= 0]), values[where >= 0])
    return largest


def draw(strengths: NDArray[np.float32], items: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Windows to score one latent on: half where it fires, one from each part of the order by strength, half where not.

    ``strengths``: (window,). Both are equally many: ``items`` // 2, or what there is; empty if one is.
    """
    firing, silent = np.flatnonzero(strengths > 0), np.flatnonzero(strengths <= 0)
    half = min(items // 2, len(firing), len(silent))
    ordered = firing[np.argsort(strengths[firing], kind="stable")]
    edges = np.arange(half + 1) * len(ordered) // max(half, 1)
    picked = ordered[random.integers(edges[:-1], edges[1:])]
    return np.concatenate([picked, random.choice(silent, half, replace=False)])


def derangement(size: int, random: np.random.Generator) -> NDArray[np.int64]:
    """A permutation of 0 … size − 1 that leaves nothing in its place (one cycle); for one thing there is none."""
    cycle = random.permutation(size)
    image = np.empty(size, np.int64)
    image[cycle] = np.roll(cycle, 1)
    return image


def score(truth: Floats, said: Floats) -> dict[str, float | None]:
    """The scores of one latent. ``said``: (item,), above 0 where the explanation says that it fires; NaN: no answer.

    An item without an answer is left out. None where a score is undefined.
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
    """Correlation; None where one of them is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def auc(positive: NDArray[np.bool_], values: Floats) -> float | None:
    """P(a positive item's value is above a negative one's), ties counting half; None where there is one kind alone."""
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    return float((rankdata(values)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def summary(scores: Sequence[float | None], chance: Sequence[float | None], seed: int) -> dict[str, float | int | None]:
    """One score over latents: its mean, its chance, and their difference with a 95 % bootstrap interval over latents.

    Only latents for which both are defined count.
    """
    pairs = [(a, b) for a, b in zip(scores, chance, strict=True) if a is not None and b is not None]
    if not pairs:
        return {"latents": 0, "mean": None, "chance": None, "difference": None, "low": None, "high": None}
    mine, theirs = np.array(pairs).T
    gain, random = mine - theirs, np.random.default_rng(seed)
    means = [gain[random.integers(0, len(gain), len(gain))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "latents": len(pairs),
        "mean": float(mine.mean()),
        "chance": float(theirs.mean()),
        "difference": float(gain.mean()),
        "low": float(low),
        "high": float(high),
    }
