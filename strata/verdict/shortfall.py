"""Say whether an SAE is worse than controls that have learned nothing, and what to try then.

It is the same sentence at the end of train, in a notebook and on top of the report.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2
from typing import Any

EXACT = 1e-3  # an fvu below this is good, whatever PCA reaches
CROWDED = 6  # about so many training rows are needed for each latent; with fewer, latents learn single rows by heart
FEW_STEPS = 1000  # a training with fewer steps is short
STEPS_AN_EPOCH = 16  # with fewer steps in an epoch, a smaller batch is advised
UNLIKE = 3.0  # test rows are unlike training rows if the training mean has this fvu on them; their own mean has 1
DEAD = 0.5  # with a larger share of dead latents, fewer latents are advised
SPARSITY = {  # the knob that sets l0, for rules whose k does not
    "jumprelu": "train.l0_coefficient",
    "relu": "train.l1_coefficient",
    "gated": "train.l1_coefficient",
    "reward": "train.activity_cost",
}
Measured = Mapping[str, float | None]
History = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class Made:
    """How an SAE was made: its rule and sizes, the number of training ``rows``, of ``steps`` and of ``epochs``.

    ``steps`` is 0 where the SAE was not trained here. ``outliers``: the share of the variance of the test rows that
    lies in rows with a norm over 3 × the median.
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
    """Return the :func:`shortfall` of a layer, from its `reports/train/<L>.json` and the steps of `<L>.csv`."""
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
    """Return a sentence if the SAE explains less of the test rows than one of two controls, else None.

    The controls are the mean, and as many principal components as the SAE has active latents. ``test``, ``mean`` and
    ``pca`` are the metrics of the SAE and of these two on the same test rows. fvu_inlier is compared, or fvu where
    there is no fvu_inlier.
    """
    name = "fvu" if None in (test["fvu_inlier"], mean["fvu_inlier"], pca["fvu_inlier"]) else "fvu_inlier"
    of_sae, of_mean, of_pca = test[name], mean[name], pca[name]
    if of_sae is None or of_mean is None or of_pca is None:
        return "there is no variance in the test rows, so that nothing can be said of the SAE; bring more documents"

    if of_sae >= of_mean:
        control = f"predicting the mean: {name} is {of_sae:.3g}, the mean's {of_mean:.3g}"
    elif of_sae > max(of_pca, EXACT):
        control = f"PCA of {made.k or 'as many'} components: {name} is {of_sae:.3g}, PCA's {of_pca:.3g}"
    else:
        return None
    return f"the SAE is worse than {control}. {_cause(test, of_mean, made)}"


def red(text: str) -> str:
    """Return ``text`` in red, if stderr is a terminal and NO_COLOR is not set."""
    return f"\033[31m{text}\033[0m" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else text


def _cause(test: Measured, of_mean: float, made: Made) -> str:
    """Return the first cause that the measurements show, and what to try."""
    l0, dead = test["l0"] or 0.0, test["dead"] or 0.0
    if not made.steps:
        return "It was not trained here: is it of this model, this layer and this hook?"
    assert made.k is not None

    # The data.
    if (made.outliers or 0.0) > 0.5:
        return (
            f"{made.outliers:.0%} of the variance is in rows of more than 3 times the median norm: leave these out of "
            "the data, or try train.outliers=skip"
        )
    if of_mean > UNLIKE:
        return (
            "The training rows are unlike the test rows: are some of them far from all others (train.outliers=skip"
            " leaves out those of 3 times the median norm), or are they too few?"
        )
    if made.k >= made.width:
        numbers = f"{made.width} number{'s' * (made.width > 1)}"
        return f"k is {made.k}, and a row has {numbers}, so that PCA is exact: try train.k={max(made.width // 8, 1)}"

    # The knobs.
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
    """Return knobs that give FEW_STEPS steps: more epochs, and smaller batches where an epoch has few of them."""
    an_epoch = made.steps / max(made.epochs, 1)
    if an_epoch >= STEPS_AN_EPOCH:
        return f"train.epochs={ceil(FEW_STEPS / an_epoch)}"
    batch = _power_of_two(made.rows / STEPS_AN_EPOCH)
    return f"train.batch_size={batch} and train.epochs={ceil(FEW_STEPS / (made.rows // batch))}"


def _power_of_two(bound: float) -> int:
    """Return the largest power of two that is not above ``bound``, but at least 2."""
    return 2 ** max(1, floor(log2(max(bound, 1))))
