"""How the training rows of a layer are spread, and rows from which nothing can be learnt.

Such rows are refused by what is wrong with them, before a training on them ends in numbers that mean nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log10

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.run.door import BadInput

MEDIAN_BLOCKS = 256  # the median norm is that of the first million rows, so that memory stays bounded
SMALLEST, LARGEST = 1e-12, 1e12  # median norms between which float32 holds the squares of rows and of their errors
APART, FAR = 1e6, 100.0  # a norm of so many times the median is no measurement; and may be none
SAME = 1e-12  # of the mean ‖x‖²: what varies by no more is the same, up to rounding
OFFSET = 0.01  # below this share of the mean ‖x‖², variance is too little of it for training on the scale of x itself


@dataclass(frozen=True)
class Spread:
    """Of some rows: their ``mean`` (width,) in float64, the ``scale`` for training, and the median norm of those that
    are not zero.

    ``scale``: with it the mean of ‖scale x‖² is the width; or, where rows lie so far from 0 that their variance is
    less than OFFSET of that, the mean of ‖scale (x − mean)‖².
    """

    mean: Tensor
    scale: float
    median_norm: float


def spread(
    blocks: Callable[[], Iterable[Tensor]], what: str, name: Callable[[int], str] = lambda row: f"row {row}"
) -> Spread:
    """The :class:`Spread` of the training rows ``blocks()``, (row, width) each. ``what``: their plural in a sentence;
    ``name``: what one of them is called there, by its number.

    bfloat16 is summed in float32 within a block, the blocks in float64; float32 in float64. Raises BadInput where the
    rows are none, zero, too large or too small, all the same, or one is far larger than the others.
    """
    total, squares, rows = torch.zeros(1, dtype=torch.float64), 0.0, 0
    norms: list[NDArray[np.floating]] = []
    largest, where = 0.0, 0
    for block in blocks():
        if not len(block):
            continue
        x = _summable(block)
        norm = x.norm(dim=1)
        total = total + x.sum(0)
        squares += float(norm.double().square().sum())

        if float(norm.max()) > largest:
            largest, where = float(norm.max()), rows + int(norm.argmax())
        if len(norms) < MEDIAN_BLOCKS:
            norms.append(norm.numpy())
        rows += len(x)
    if not rows:
        raise BadInput(f"there are no training {what}; bring more of them, or hold fewer out")
    median = check_norms(np.concatenate(norms), largest, what, lambda: name(where))

    mean, mean_square = total / rows, squares / rows
    if 1 - float(mean.square().sum()) / mean_square < OFFSET:  # a small difference of large numbers: sum it as it is
        apart = sum(float((_summable(block).double() - mean).square().sum()) for block in blocks())
        if apart <= SAME * squares:
            raise BadInput(_constant(rows, what, apart > 0))
        mean_square = apart / rows if apart < OFFSET * squares else mean_square
    return Spread(mean, float((len(total) / mean_square) ** 0.5), median)


def _summable(block: Tensor) -> Tensor:
    return block.float() if block.dtype is torch.bfloat16 else block.double()


def _constant(rows: int, what: str, differ: bool) -> str:
    if rows == 1:
        return f"there is one of the training {what}, and one alone does not vary; bring more, or hold fewer out"
    if differ:
        return (
            f"the {rows} training {what} differ by less than a millionth of their size, which float32 cannot tell from "
            "rounding; take away what they have in common before you bring them"
        )
    return f"the {rows} training {what} do not vary: all are the same, so that there is nothing to learn"


def check_norms(norms: NDArray[np.floating], largest: float, what: str, name: Callable[[], str]) -> float:
    """The median of those ``norms`` (row,) that are not zero; ``largest`` is that of all rows, ``name()`` whose it is.

    Raises BadInput where all are zero, one lies far above the others, or their squares do not fit float32.
    """
    there = norms[norms > 0]
    if not len(there) and not largest:
        raise BadInput(f"the {len(norms)} {what} are zero, every one of them, so there is nothing to learn")
    median = float(np.median(there)) if len(there) else largest
    if largest > APART * median:
        raise BadInput(far(largest, median, what, name()))
    if not SMALLEST <= median <= LARGEST:
        raise BadInput(
            f"the {what} are too {'large' if median > 1 else 'small'} for sums of squares in float32: their median "
            f"norm is {median:.2g}; multiply all of them by 1e{-round(log10(median))}"
        )
    return median


def far(largest: float, median: float, what: str, name: str) -> str:
    """The sentence on a row, called ``name``, whose norm ``largest`` is far above the ``median``."""
    return (
        f"{name} has a norm of {largest:.2g}, {largest / median:.0e} times the median of the {what}: is it a value "
        "that stands for missing data? Leave it out"
    )
