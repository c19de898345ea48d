"""Measure how the training rows of a layer are spread, and refuse rows from which nothing can be learnt.

The message says what is wrong with the rows, before a training on them ends in numbers that mean nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log10

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.run.door import BadInput

MEDIAN_BLOCKS = 256  # the median norm is taken from the first million rows, so that memory stays bounded
SMALLEST, LARGEST = 1e-12, 1e12  # between these median norms, float32 holds the squares of rows and of their errors
APART = 1e6  # a row with a norm of so many times the median cannot be a measurement: it is refused
FAR = 100.0  # with so many times the median, it may be none: there is a warning
SAME = 1e-12  # rows that vary by no more than this share of the mean ‖x‖² are the same, up to rounding
OFFSET = 0.01  # with a variance below this share of the mean ‖x‖², rows cannot be trained on the scale of x itself


@dataclass(frozen=True)
class Spread:
    """The ``mean`` (width,) of some rows x in float64, their ``scale`` for training, and their median norm.

    ``scale`` makes the mean of ‖scale x‖² equal to the width. Where rows lie far from 0, so that their variance is less
    than the share OFFSET of the mean ‖x‖², it makes the mean of ‖scale (x − mean)‖² equal to the width instead.
    ``median_norm`` is the median of the norms that are not zero.
    """

    mean: Tensor
    scale: float
    median_norm: float


def spread(
    blocks: Callable[[], Iterable[Tensor]], what: str, name: Callable[[int], str] = lambda row: f"row {row}"
) -> Spread:
    """Measure the :class:`Spread` of the training rows ``blocks()``, (row, width) each.

    ``what``: the plural of a row in messages. ``name``: what a message calls a row, by its number.

    bfloat16 rows are summed in float32 within a block, and blocks in float64. float32 rows are summed in float64.

    Raises BadInput where there are no rows, all are zero, too large, too small or the same, or one is far larger than
    the others.
    """
    total, squares, rows = torch.zeros(1, dtype=torch.float64), 0.0, 0  # Σx, Σ‖x‖², number of rows
    norms: list[NDArray[np.floating]] = []
    largest, largest_row = 0.0, 0
    for block in blocks():
        if not len(block):
            continue
        x = _summable(block)
        norm = x.norm(dim=1)
        total = total + x.sum(0)
        squares += float(norm.double().square().sum())

        if float(norm.max()) > largest:
            largest, largest_row = float(norm.max()), rows + int(norm.argmax())
        if len(norms) < MEDIAN_BLOCKS:
            norms.append(norm.numpy())
        rows += len(x)

    if not rows:
        raise BadInput(f"there are no training {what}; bring more of them, or hold fewer out")
    median = check_norms(np.concatenate(norms), largest, what, lambda: name(largest_row))

    # Where the variance is a small difference of large numbers, a second pass sums it directly.
    mean, mean_square = total / rows, squares / rows
    if 1 - float(mean.square().sum()) / mean_square < OFFSET:
        apart = sum(float((_summable(block).double() - mean).square().sum()) for block in blocks())
        if apart <= SAME * squares:
            raise BadInput(_constant(rows, what, apart > 0))
        mean_square = apart / rows if apart < OFFSET * squares else mean_square
    return Spread(mean, float((len(total) / mean_square) ** 0.5), median)


def _summable(block: Tensor) -> Tensor:
    """Return a block in the precision in which it is summed."""
    return block.float() if block.dtype is torch.bfloat16 else block.double()


def _constant(rows: int, what: str, differ: bool) -> str:
    """Return the message for rows that do not vary, or ``differ`` too little."""
    if rows == 1:
        return f"there is one of the training {what}, and one alone does not vary; bring more, or hold fewer out"
    if differ:
        return (
            f"the {rows} training {what} differ by less than a millionth of their size, which float32 cannot tell from "
            "rounding; take away what they have in common before you bring them"
        )
    return f"the {rows} training {what} do not vary: all are the same, so that there is nothing to learn"


def check_norms(norms: NDArray[np.floating], largest: float, what: str, name: Callable[[], str]) -> float:
    """Return the median of those ``norms`` (row,) that are not zero.

    ``largest``: the largest norm of all rows, also of those without an entry in ``norms``; ``name()``: the name of its
    row. Raises BadInput where all are zero, one lies far above the others, or their squares do not fit float32.
    """
    positive = norms[norms > 0]
    if not len(positive) and not largest:
        raise BadInput(f"the {len(norms)} {what} are zero, every one of them, so there is nothing to learn")

    median = float(np.median(positive)) if len(positive) else largest
    if largest > APART * median:
        raise BadInput(far(largest, median, what, name()))
    if not SMALLEST <= median <= LARGEST:
        raise BadInput(
            f"the {what} are too {'large' if median > 1 else 'small'} for sums of squares in float32: their median "
            f"norm is {median:.2g}; multiply all of them by 1e{-round(log10(median))}"
        )
    return median


def far(largest: float, median: float, what: str, name: str) -> str:
    """Return the message for a row, called ``name``, whose norm ``largest`` is far above the ``median``."""
    return (
        f"{name} has a norm of {largest:.2g}, {largest / median:.0e} times the median of the {what}: is it a value "
        "that stands for missing data? Leave it out"
    )
