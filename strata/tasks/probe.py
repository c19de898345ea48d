"""Probe a binary task by the method of sae-probes 0.4.2 (Kantamneni et al. 2025, arXiv 2502.16681).

The k latents are those whose means differ most between the two classes of training prompts, after each latent was
divided by its mean where it is active. A logistic regression on them, without standardising, gets its C from ten, by
the AUC on held-back training prompts. It is judged on prompts that neither saw: AUC, F1 (weighted by class) and
accuracy. Random numbers are drawn as sae-probes draws them, so that the same prompts are learnt from.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import LeavePOut, StratifiedKFold
from threadpoolctl import threadpool_limits

from strata.tasks.knobs import Penalty, Regime

SEED = 42  # of the first split, as sae-probes has it
MOST_TRAINING, JUDGED = 1024, 100  # prompts to learn from at the most, and to judge by at the least
CS = np.logspace(5, -5, 10)  # tried from weak to strong regularisation; of equally good ones the first counts
ITERATIONS = 1000
TINY = 1e-6
SIZES = np.unique(np.round(np.logspace(1, 10, num=20, base=2)).astype(int)).tolist()  # scarcity: 2 … 1024 prompts
SHARES = np.linspace(0.05, 0.95, num=19).tolist()  # imbalance: of positive prompts

Floats = NDArray[np.floating]
Targets = NDArray[np.int64]  # (prompt,) 0 or 1


class Drawing(NamedTuple):
    """How many prompts are drawn to learn from and to judge by, and the ``share`` of positive ones.

    With the regime ood the share is of those to learn from: what is judged by is taken as it is.
    """

    regime: Regime
    train: int
    test: int
    share: float


class Scores(NamedTuple):
    """What a probe reaches on its test prompts; ``validation``: the AUC by which its C was chosen."""

    auc: float
    f1: float
    accuracy: float
    validation: float


@dataclass(frozen=True)
class Parts:
    """The places of prompts to learn from and to judge by, and their targets."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    y_train: Targets
    y_test: Targets


def drawings(regime: Regime, targets: Targets, ood: int = 0) -> list[Drawing]:
    """List the draws of a regime from prompts with these ``targets``, as many of both classes.

    normal: all prompts but 100 to learn from, 1,024 at the most. scarcity: 2 to 1,024 of them. imbalance: a share of
    0.05 to 0.95 is positive. ood: those of normal to learn from, judged by all ``ood`` prompts of another kind.
    """
    size = len(targets)
    if regime == "ood":
        return [Drawing(regime, min(size - JUDGED, MOST_TRAINING), ood, 0.5)] if ood else []
    if regime == "normal":
        train = min(size - JUDGED, MOST_TRAINING)
        return [Drawing(regime, train, size - train - 1, 0.5)]
    if regime == "scarcity":
        return [Drawing(regime, train, size - train - 1, 0.5) for train in SIZES if train <= size - JUDGED]

    positive = int(targets.sum())
    most = int(min((size - positive) / (1 - min(SHARES)), positive / max(SHARES)))
    train = min(most - JUDGED, MOST_TRAINING)
    if train < 2 or np.ceil(max(SHARES) * train) >= train:  # the most uneven draw would have one class alone
        return []
    return [Drawing(regime, train, max(JUDGED, most - train - 1), share) for share in SHARES]


def draw(targets: Targets, drawing: Drawing, seed: int, ood: Targets | None = None) -> Parts:
    """Draw the prompts of a probe, the shares of both classes fixed, each part in random order.

    ``ood``: the targets of prompts of another kind, whose places are behind those of ``targets``. If there are any,
    the probe learns from the same prompts in the same order as without them, and is judged by them alone.
    """
    random = np.random.RandomState(seed)
    positive, negative = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    parts = []
    for size in (drawing.train, drawing.test if ood is None else 0):
        inside = int(np.ceil(drawing.share * size))
        parts.append((inside, size - inside))

    # sae-probes draws in this order: the training prompts of both classes, then the test prompts, then their order.
    (inside, outside), (test_inside, test_outside) = parts
    train = random.choice(positive, inside, replace=False), random.choice(negative, outside, replace=False)
    rest = np.setdiff1d(positive, train[0]), np.setdiff1d(negative, train[1])
    test = random.choice(rest[0], test_inside, replace=False), random.choice(rest[1], test_outside, replace=False)
    order = random.permutation(np.concatenate(train))
    if ood is not None:
        return Parts(order, len(targets) + np.arange(len(ood)), targets[order], ood)
    judged = random.permutation(np.concatenate(test))
    return Parts(order, judged, targets[order], targets[judged])


def strongest(x: Floats, y: Targets) -> NDArray[np.int64]:
    """Sort the columns of ``x`` (prompt, column) by how much they tell the classes ``y`` apart, the strongest first.

    A column is divided by the mean of its sizes where it is not 0; then the means of the two classes are compared.
    """
    columns = torch.from_numpy(x)
    sizes = columns.abs().sum(0) / ((columns != 0).sum(0) + TINY)
    normal = columns / (sizes + TINY)
    positive = torch.from_numpy(y == 1)
    difference = normal[positive].mean(0) - normal[~positive].mean(0)
    return torch.argsort(difference.abs(), descending=True).numpy()


def folds(x: Floats, y: Targets, seed: int) -> list[tuple[Any, Any]]:
    """Return (learn, hold back) for each fold of the training prompts ``x``, by whose AUC C is chosen.

    12 prompts and fewer: every pair is held back once. Fewer than 128: six folds. Else the last fifth, 100 at the most.
    A fold that holds back one class alone does not count.
    """
    size = len(x)
    if size >= 128:
        learnt = size - min(int(0.2 * size), 100)
        return [(np.arange(learnt), np.arange(learnt, size))]
    folding = LeavePOut(2) if size <= 12 else StratifiedKFold(n_splits=6, shuffle=True, random_state=seed)
    return [(learn, held) for learn, held in folding.split(x, y) if len(np.unique(y[held])) == 2]


def regression(c: float, penalty: Penalty, seed: int) -> LogisticRegression:
    """Make a logistic regression as sae-probes has it."""
    if penalty == "l1":
        return LogisticRegression(C=c, l1_ratio=1.0, solver="saga", random_state=seed, max_iter=ITERATIONS)
    return LogisticRegression(C=c, random_state=seed, max_iter=ITERATIONS)


def fit(x: Floats, x_test: Floats, parts: Parts, penalty: Penalty, seed: int) -> Scores:
    """Choose C, learn from all training prompts ``x`` (prompt, column), and judge on ``x_test``.

    With 3 training prompts and fewer C is 1. It is computed in float64, as scikit-learn does with the tensors that it
    gets from sae-probes: in float32 a regression that C hardly holds stops elsewhere.
    """
    x, x_test = np.ascontiguousarray(x, np.float64), np.ascontiguousarray(x_test, np.float64)
    y, y_test = parts.y_train, parts.y_test
    best, validation = 1.0, None
    with config_context(assume_finite=True, skip_parameter_validation=True):
        if len(x) > 3:
            held_back = folds(x, y, seed)
            means = [
                np.mean([_auc_of_fold(x, y, fold, regression(c, penalty, seed)) for fold in held_back]) for c in CS
            ]
            best, validation = float(CS[int(np.argmax(means))]), float(np.max(means))  # with NaN: the first C

        order = np.random.RandomState(seed).permutation(len(x))
        model = regression(best, penalty, seed).fit(x[order], y[order])
        if validation is None:
            validation = float(roc_auc_score(y, model.predict_proba(x)[:, 1]))

    said = model.predict(x_test)
    return Scores(
        auc=float(roc_auc_score(y_test, model.predict_proba(x_test)[:, 1])),
        f1=float(f1_score(y_test, said, average="weighted")),
        accuracy=float(accuracy_score(y_test, said)),
        validation=validation,
    )


def _auc_of_fold(x: Floats, y: Targets, fold: tuple[Any, Any], model: LogisticRegression) -> float:
    """Return the AUC of ``model`` on the prompts that a fold holds back; 0.5 where it learns from one class alone."""
    learn, held = fold
    if len(np.unique(y[learn])) < 2:
        return 0.5
    return float(roc_auc_score(y[held], model.fit(x[learn], y[learn]).predict_proba(x[held])[:, 1]))


@contextmanager
def many_small_ones() -> Iterator[None]:
    """Make many small probes fast and quiet inside the block, which all threads share.

    BLAS gets one thread: two that wait for each other take ten times as long. What scikit-learn says of few prompts is
    not shown: that a regression may go on, that a fold has few prompts of a class, or none, where the AUC is NaN. Nor
    that a product met an invalid number: now and then BLAS says so of lanes that it does not use.
    """
    with threadpool_limits(1, "blas"), np.errstate(invalid="ignore"), warnings.catch_warnings():
        for category in (ConvergenceWarning, UndefinedMetricWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", "The least populated class")
        yield


class Probed(NamedTuple):
    """The scores of a probe with the first ``latents`` of those that tell most."""

    scores: Scores
    latents: list[int]


ALL = "all"


def probes(
    x: Floats, parts: Parts, ks: Sequence[int], penalty: Penalty, seed: int, narrow: bool = False
) -> dict[str, Probed]:
    """Probe the columns of ``x`` (prompt, column): the k strongest for each of ``ks``, and all; k -> its scores.

    Columns that are 0 on all training prompts are left out: a regression gives them no weight. ``narrow``: the probe
    of all columns sees them as :func:`narrowed` turns them. It is the same regression, which stops elsewhere within its
    tolerance. sae-probes has a probe of all columns for activations alone, and does not turn them.
    """
    train = x[parts.train]
    alive = np.flatnonzero(train.any(0))
    if not len(alive):
        alive = np.array([0])  # a column of nothing but 0 gives chance
    train, test = train[:, alive], x[parts.test][:, alive]
    order = strongest(train, parts.y_train)

    probed = {}
    for k in ks:
        chosen = order[:k]
        scores = fit(train[:, chosen], test[:, chosen], parts, penalty, seed)
        probed[str(k)] = Probed(scores, alive[chosen].tolist())
    if narrow and penalty == "l2":
        train, test = narrowed(train, test)
    return {**probed, ALL: Probed(fit(train, test, parts, penalty, seed), [])}


def narrowed(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Turn the columns so that no more are left than there are training prompts, in float64.

    With the QR decomposition trainᵀ = Q R, training prompts lie in the span of Q (column, prompt), and a regression
    with an l2 penalty has its weights there: w = Q v has the norm of v, and x w = (x Q) v. So a regression on train Q,
    or on a part of its prompts, is the same one. For 4,000 latents and 300 prompts it takes a third of the time.
    """
    if train.shape[1] <= len(train):
        return train, test
    q, r = np.linalg.qr(train.T.astype(np.float64))
    return r.T, test.astype(np.float64) @ q
