"""Whether an SAE is worse than what has learned nothing, and what to try then: one sentence, the same at the end of
train, in a notebook and on top of the report."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2
from typing import Any

EXACT = 1e-3  # an fvu below this is good, whatever PCA reaches
CROWDED = 6  # training rows that a latent needs, about: with fewer, latents learn single rows by heart
FEW_STEPS, STEPS_AN_EPOCH = 1000, 16
UNLIKE = 3.0  # fvu of the training rows' mean on the test rows, where 1 is the test rows' own
DEAD = 0.5
SPARSITY = {  # what sets l0, where k does not
    "jumprelu": "train.l0_coefficient",
    "relu": "train.l1_coefficient",
    "gated": "train.l1_coefficient",
    "reward": "train.activity_cost",
}
Measured = Mapping[str, float | None]
History = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class Made:
    """How an SAE came about: by which ``rule``, with how many ``latents`` and ``k``, on how many training ``rows`` of
    what ``width``, in how many ``steps`` and ``epochs``; no steps where it was not trained here.

    ``outliers``: share of the variance of the test rows that lies in rows of a norm over 3 × the median.
    """

    rule: str
    latents: int
    k: int | None
    rows: int
    width: int
    steps: int
    epochs: int
    outliers: float | None


def of_layer(found: Mapping[str, Any], history: History) -> str | None:
    """The :func:`shortfall` of a layer, from its `reports/train/<L>.json` and the steps of `<L>.csv`."""
    last = history[-1] if history else {}
    rows = found["rows"]["train"]
    made = Made(
        rule=found["rule"],
        latents=found["latents"],
        k=found["k"],
        rows=rows,
        width=found["model"]["width"],
        steps=round(last.get("step") or 0),
        epochs=round((last.get("tokens") or 0) / max(rows, 1)),
        outliers=found["outliers"]["share_of_variance"],
    )
    return shortfall(found["test"], found["controls"]["mean"], found["controls"]["pca"], made)


def shortfall(test: Measured, mean: Measured, pca: Measured, made: Made) -> str | None:
    """The sentence on an SAE that explains less of the test rows than their mean, or than as many principal components
    as it has active latents; None of one that explains more.

    ``test``, ``mean``, ``pca``: what each reaches on the same test rows; fvu_inlier counts, or fvu where there is none.
    """
    name = "fvu" if None in (test["fvu_inlier"], mean["fvu_inlier"], pca["fvu_inlier"]) else "fvu_inlier"
    own, of_mean, of_pca = test[name], mean[name], pca[name]
    if own is None or of_mean is None or of_pca is None:
        return "there is no variance in the test rows, so that nothing can be said of the SAE; bring more documents"

    if own >= of_mean:
        what = f"predicting the mean: {name} is {own:.3g}, the mean's {of_mean:.3g}"
    elif own > max(of_pca, EXACT):
        what = f"PCA of {made.k or 'as many'} components: {name} is {own:.3g}, PCA's {of_pca:.3g}"
    else:
        return None
    return f"the SAE is worse than {what}. {_cause(test, of_mean, made)}"


def red(text: str) -> str:
    """``text`` in red, where stderr is a terminal."""
    return f"\033[31m{text}\033[0m" if sys.stderr.isatty() else text


def _cause(test: Measured, of_mean: float, made: Made) -> str:
    """What is measured that explains it, and what to try; the first that applies."""
    l0, dead = test["l0"] or 0.0, test["dead"] or 0.0
    if not made.steps:
        return "It was not trained here: is it of this model, this layer and this hook?"
    assert made.k is not None

    if (made.outliers or 0.0) > 0.5:
        return (
            f"{made.outliers:.0%} of the variance is in rows of more than 3 times the median norm: leave these out of "
            "the data, or try train.skip_outliers=true"
        )
    if of_mean > UNLIKE:
        return (
            "The training rows are unlike the test rows: are some of them far from all others (train.skip_outliers=true"
            " leaves out those of 3 times the median norm), or are they too few?"
        )
    if made.k >= made.width:
        numbers = f"{made.width} number{'s' * (made.width > 1)}"
        return f"k is {made.k}, and a row has {numbers}, so that PCA is exact: try train.k={max(made.width // 8, 1)}"

    if made.rule in SPARSITY and l0 < made.k / 2:
        return f"{l0:.3g} latents are active on a row, and train.k is {made.k}: try a lower {SPARSITY[made.rule]}"
    if made.latents * CROWDED > made.rows and (fewer := _power_of_two(made.rows / CROWDED)) < made.latents:
        k = f" and train.k={max(fewer // 8, 1)}" if made.k > fewer // 4 else ""
        return f"{made.latents:,} latents on {made.rows:,} rows are too many: try train.latents={fewer}{k}"
    if made.steps < FEW_STEPS:
        return f"{made.steps} steps are few: try {_longer(made)}"
    if dead > DEAD:
        fewer = _power_of_two(made.latents * (1 - dead))
        return f"{dead:.0%} of the latents are dead: try train.latents={fewer}, or a higher train.auxk"
    return "Try a higher train.k, a lower train.lr or more train.epochs"


def _longer(made: Made) -> str:
    """Knobs that give FEW_STEPS steps: smaller batches where an epoch is of a few of them, and more epochs."""
    an_epoch = made.steps / max(made.epochs, 1)
    if an_epoch >= STEPS_AN_EPOCH:
        return f"train.epochs={ceil(FEW_STEPS / an_epoch)}"
    batch = _power_of_two(made.rows / STEPS_AN_EPOCH)
    return f"train.batch_size={batch} and train.epochs={ceil(FEW_STEPS / (made.rows // batch))}"


def _power_of_two(bound: float) -> int:
    """The largest that is not above ``bound``, at least 2."""
    return 2 ** max(1, floor(log2(max(bound, 1))))
