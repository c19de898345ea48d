"""k-sparse probing: can k latents tell the documents of a label from others?

For each label the k latents with the largest |mean(c | label) − mean(c | others)| over training documents are chosen,
and a logistic regression on them is judged by documents that it has not seen (Gurnee et al. 2023, "Finding neurons in a
haystack"; SAEBench's sparse_probing). As many documents of other labels are drawn as the label has, on both sides of
the split, so that chance is 0.5. Columns are standardised by the training documents first, which SAEBench does not do:
a probe of raw activations learns little else than their few large channels.

The SAE saw some of these documents' tokens in training, but no label: probes may split all documents anew.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.linear_model import LogisticRegression

from strata.evaluation.intervals import over_seeds

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Accuracies = dict[str, dict[str, float]]  # what is probed -> k -> held-out accuracy
ALL = "all"
ROUNDING = 1e-6  # of the largest eigenvalue, in float32


class Split(NamedTuple):
    """Documents, half of them of the label, and whether they are: to learn from, and to judge by."""

    train: NDArray[np.int64]
    y_train: Bools
    test: NDArray[np.int64]
    y_test: Bools


def commonest(names: Sequence[str], least: int, most: int) -> list[str]:
    """The ``most`` commonest labels, of equals the first by name, of those that ``least`` documents have and as many
    have not."""
    counts = Counter(names)
    enough = [name for name, n in counts.items() if min(n, counts.total() - n) >= least]
    return sorted(enough, key=lambda name: (-counts[name], name))[:most]


def split(labelled: Bools, held_out: float, random: np.random.Generator) -> Split:
    """Draw as many of both kinds of documents as the rarer kind has, and hold ``held_out`` of each out, at least one
    and not all.

    ``labelled``: (document,)."""
    inside, outside = random.permutation(np.flatnonzero(labelled)), random.permutation(np.flatnonzero(~labelled))
    count = min(len(inside), len(outside))
    test = min(max(1, round(held_out * count)), count - 1)
    train, held = (np.concatenate([inside[part], outside[part]]) for part in (slice(test, count), slice(test)))
    return Split(train, np.repeat([True, False], count - test), held, np.repeat([True, False], test))


def strongest(x: Floats, y: Bools, k: int) -> NDArray[np.int64]:
    """The ``k`` columns of ``x`` (document, column) whose means differ most between the two kinds of documents; of
    equals the first."""
    return np.argsort(-np.abs(x[y].mean(0) - x[~y].mean(0)), kind="stable")[:k]


def accuracy(x: Floats, of: Split) -> float:
    """Of a logistic regression (L2, C = 1) on standardised columns, on held-out documents.

    With more columns than training documents it is fitted in the space that these span, where its weights lie anyway.
    """
    mean, deviation = x[of.train].mean(0), x[of.train].std(0)
    train, test = ((x[part] - mean) / np.where(deviation > 0, deviation, 1) for part in (of.train, of.test))
    if train.shape[1] > len(train):
        span = spanned(train)
        train, test = train @ span, test @ span
    if not train.any():  # nothing tells the two kinds apart, of which there are equally many
        return 0.5
    with config_context(assume_finite=True, skip_parameter_validation=True):
        probe = LogisticRegression(C=1.0, solver="newton-cholesky").fit(train, of.y_train)
        return float((probe.predict(test) == of.y_test).mean())


def spanned(x: Floats) -> Floats:
    """Orthonormal directions (column, direction) that span the rows of ``x`` (row, column); there are few rows."""
    values, vectors = np.linalg.eigh(x @ x.T)
    inside = values > ROUNDING * values[-1]
    return x.T @ (vectors[:, inside] / np.sqrt(values[inside]))


def probes(columns: Mapping[str, Floats], of: Split, ks: Sequence[int], random: np.random.Generator) -> Accuracies:
    """The accuracies on one split of everything in ``columns``, (document, column) each, and of two controls of its
    ``sae``: ``drawn``, k latents drawn among those that are active on training documents; ``shuffled``, where documents
    have each other's labels."""
    sae = columns["sae"]
    shuffled = of._replace(y_train=random.permutation(of.y_train), y_test=random.permutation(of.y_test))
    found = {}
    for name, x, how in (*((name, x, of) for name, x in columns.items()), ("shuffled", sae, shuffled)):
        order = strongest(x[how.train], how.y_train, x.shape[1])
        found[name] = {str(k): accuracy(x[:, order[:k]], how) for k in ks} | {ALL: accuracy(x, how)}
    active = random.permutation(np.flatnonzero(sae[of.train].any(0)))
    found["drawn"] = {str(k): accuracy(sae[:, active[:k]], of) for k in ks}
    return found


def probing(
    columns: Mapping[str, Floats],
    names: Sequence[str],
    labels: Sequence[str],
    ks: Sequence[int],
    held_out: float,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Held-out accuracy by what is probed and k, as :func:`probes`, the mean over ``labels``; the interval is the least
    and the most over ``seeds``, each a split of its own. ``names``: each document's label.

    ``labels`` in the result: of each, the latent that was chosen first in most splits, and how well it does alone.
    """
    by_seed: list[Accuracies] = []
    alone: dict[str, list[tuple[int, float]]] = {label: [] for label in labels}
    for seed in seeds:
        found = []
        for number, label in enumerate(labels):
            random = np.random.default_rng([seed, number])
            of = split(np.array(names) == label, held_out, random)
            found.append(probes(columns, of, ks, random))
            first = int(strongest(columns["sae"][of.train], of.y_train, 1)[0])
            alone[label].append((first, accuracy(columns["sae"][:, [first]], of)))
        by_seed.append(
            {name: {k: float(np.mean([one[name][k] for one in found])) for k in found[0][name]} for name in found[0]}
        )
    measured = {
        name: {k: over_seeds([one[name][k] for one in by_seed]) for k in by_seed[0][name]} for name in by_seed[0]
    }
    return {
        "sae": measured.pop("sae"),
        "controls": measured,
        "labels": [{"label": label, **_alone(names, label, alone[label])} for label in labels],
    }


def _alone(names: Sequence[str], label: str, found: list[tuple[int, float]]) -> dict[str, Any]:
    latent, times = Counter(latent for latent, _ in found).most_common(1)[0]
    return {
        "documents": names.count(label),
        "latent": latent,
        "chosen": times / len(found),
        "accuracy": over_seeds([accuracy for _, accuracy in found]),
    }
