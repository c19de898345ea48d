"""Probe with k latents: can they tell the documents of a label from others?

For each label the k latents with the largest |mean(c | label) − mean(c | others)| over training documents are chosen. A
logistic regression on them is judged on documents that it has not seen (Gurnee et al. 2023, "Finding neurons in a
haystack"; SAEBench's sparse_probing). As many documents of other labels are drawn as the label has, on both sides of
the split, so that chance is 0.5. Columns are standardised by the training documents first. SAEBench does not do that,
but a probe of raw activations learns little else than their few large channels.

The SAE saw tokens of these documents in training, but no label. So probes may split all documents anew.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.linear_model import LogisticRegression

from strata.evaluation.intervals import over_seeds
from strata.measure.matched import matched
from strata.run.progress import each

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Accuracies = dict[str, dict[str, float]]  # name of what is probed -> k -> held-out accuracy
ALL = "all"
ROUNDING = 1e-6  # eigenvalues below this share of the largest one are rounding, in float32


class Split(NamedTuple):
    """Documents to learn from and to judge by, (document,) each. Half of them have the label: ``y`` says which."""

    train: NDArray[np.int64]
    y_train: Bools
    test: NDArray[np.int64]
    y_test: Bools


def commonest(names: Sequence[str], least: int, most: int) -> list[str]:
    """List the ``most`` commonest labels that at least ``least`` documents have, and at least as many do not.

    ``names``: the label of each document. Equally common labels are sorted by name.
    """
    counts = Counter(names)
    enough = [name for name, n in counts.items() if min(n, counts.total() - n) >= least]
    return sorted(enough, key=lambda name: (-counts[name], name))[:most]


def split(labelled: Bools, held_out: float, random: np.random.Generator) -> Split:
    """Draw as many documents of both kinds as the rarer kind has, and hold out a share of each kind.

    ``labelled``: (document,) whether a document has the label. ``held_out``: the share; at least one document of each
    kind is held out, and not all.
    """
    inside, outside = random.permutation(np.flatnonzero(labelled)), random.permutation(np.flatnonzero(~labelled))
    count = min(len(inside), len(outside))
    test = min(max(1, round(held_out * count)), count - 1)
    train, held = (np.concatenate([inside[part], outside[part]]) for part in (slice(test, count), slice(test)))
    return Split(train, np.repeat([True, False], count - test), held, np.repeat([True, False], test))


def strongest(x: Floats, y: Bools, k: int) -> NDArray[np.int64]:
    """Find the ``k`` columns of ``x`` (document, column) whose means differ most between the two kinds of documents.

    ``y``: (document,). Of equal columns the first comes first.
    """
    return np.argsort(-np.abs(x[y].mean(0) - x[~y].mean(0)), kind="stable")[:k]


def accuracy(x: Floats, of: Split) -> float:
    """Fit a logistic regression (L2, C = 1) on standardised columns; return its accuracy on held-out documents.

    ``x``: (document, column). With more columns than training documents it is fitted in the space that these documents
    span, where its weights lie anyway.
    """
    mean, deviation = x[of.train].mean(0), x[of.train].std(0)
    train, test = ((x[part] - mean) / np.where(deviation > 0, deviation, 1) for part in (of.train, of.test))
    if train.shape[1] > len(train):
        span = spanned(train)
        train, test = train @ span, test @ span
    if not train.any():  # nothing tells the two kinds apart, and there are equally many of both
        return 0.5

    with config_context(assume_finite=True, skip_parameter_validation=True):
        probe = LogisticRegression(C=1.0, solver="newton-cholesky").fit(train, of.y_train)
        return float((probe.predict(test) == of.y_test).mean())


def spanned(x: Floats) -> Floats:
    """Find orthonormal directions (column, direction) that span the few rows of ``x`` (row, column)."""
    values, vectors = np.linalg.eigh(x @ x.T)
    inside = values > ROUNDING * values[-1]
    return x.T @ (vectors[:, inside] / np.sqrt(values[inside]))


def probes(columns: Mapping[str, Floats], of: Split, ks: Sequence[int], random: np.random.Generator) -> Accuracies:
    """Probe everything in ``columns``, (document, column) each, on one split, and two controls of its ``sae``.

    ``drawn``: in place of each of the k latents another one that is active on nearly as many training documents.
    ``shuffled``: documents have each other's labels.
    """
    sae = columns["sae"]
    shuffled = of._replace(y_train=random.permutation(of.y_train), y_test=random.permutation(of.y_test))

    accuracies = {}
    probed = [*((name, x, of) for name, x in columns.items()), ("shuffled", sae, shuffled)]
    for name, x, documents in probed:
        order = strongest(x[documents.train], documents.y_train, x.shape[1])
        by_k = {str(k): accuracy(x[:, order[:k]], documents) for k in ks}
        accuracies[name] = by_k | {ALL: accuracy(x, documents)}

    frequency = (sae[of.train] > 0).mean(0)  # (latent,) share of the training documents on which it is active
    order = strongest(sae[of.train], of.y_train, max(ks))
    accuracies["drawn"] = {}
    for k in ks:
        partners = matched(frequency, order[:k], random)
        accuracies["drawn"][str(k)] = accuracy(sae[:, partners[partners >= 0]], of)
    return accuracies


def probing(
    columns: Mapping[str, Floats],
    names: Sequence[str],
    labels: Sequence[str],
    ks: Sequence[int],
    held_out: float,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Probe everything in ``columns``, as :func:`probes` does, for each of ``labels`` and with each of ``seeds``.

    The held-out accuracies are means over the labels; the interval is the least and the most over the seeds, each of
    which is a split of its own. ``names``: the label of each document.

    ``labels`` in the result: for each label, the latent that was the first choice in most splits, and how well the
    first choice does alone.
    """
    by_seed: list[Accuracies] = []
    first_choices: dict[str, list[tuple[int, float]]] = {label: [] for label in labels}  # latent, its accuracy alone
    for seed in seeds:
        by_label = []
        for number, label in each(list(enumerate(labels)), "probe", "labels"):
            random = np.random.default_rng([seed, number])
            of = split(np.array(names) == label, held_out, random)
            by_label.append(probes(columns, of, ks, random))
            latent = int(strongest(columns["sae"][of.train], of.y_train, 1)[0])
            first_choices[label].append((latent, accuracy(columns["sae"][:, [latent]], of)))

        by_seed.append(
            {
                name: {k: float(np.mean([result[name][k] for result in by_label])) for k in by_label[0][name]}
                for name in by_label[0]
            }
        )

    measured = {
        name: {k: over_seeds([result[name][k] for result in by_seed]) for k in by_seed[0][name]} for name in by_seed[0]
    }
    return {
        "sae": measured.pop("sae"),
        "controls": measured,
        "labels": [{"label": label, **_alone(names, label, first_choices[label])} for label in labels],
    }


def _alone(names: Sequence[str], label: str, first_choices: list[tuple[int, float]]) -> dict[str, Any]:
    """Summarise the first choices of a label, one for each split: the commonest latent, and their accuracies."""
    latent, times = Counter(latent for latent, _ in first_choices).most_common(1)[0]
    return {
        "documents": names.count(label),
        "latent": latent,
        "chosen": times / len(first_choices),
        "accuracy": over_seeds([accuracy for _, accuracy in first_choices]),
    }
