"""Pictures: names beside lines, and numbers on logarithmic axes, that can be read."""

from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from strata.pages.pictures import LETTER, label_ends, log_ticks


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (0.06, 0.4, 7, [0.07, 0.1, 0.15, 0.2, 0.3]),
        (5e-4, 3e-3, 4, [5e-4, 1e-3, 2e-3]),
        (4e-3, 0.25, 4, [0.01, 0.03, 0.1]),
        (1, 1e4, 4, [1, 10, 100, 1000, 10000]),
        (0.0111, 0.0119, 4, [0.01125, 0.0115, 0.01175]),
    ],
)
def test_a_logarithmic_axis_has_plain_numbers(low: float, high: float, most: int, ticks: list[float]):
    axes = Figure().subplots()
    axes.set(xscale="log", xlim=(low, high))
    log_ticks(axes, "x", most)
    assert list(axes.get_xticks()) == pytest.approx(ticks)
    assert [axes.xaxis.get_major_formatter()(tick) for tick in ticks] == [f"{tick:g}" for tick in ticks]
    assert not len(axes.get_xticks(minor=True))


@pytest.mark.parametrize(
    "ends", [[0.1, 0.5, 0.9], [0.5, 0.5, 0.5], [0.0, 0.0, 0.01], [0.99, 1.0, 1.0], [0.9, 0.1, 0.12]]
)
def test_the_names_of_lines_never_stand_on_each_other(ends: list[float]):
    axes = Figure().subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    label_ends(axes, [(end, str(index), "black") for index, end in enumerate(ends)])
    places = [name.get_position()[1] for name in axes.texts]
    between = [high - low for low, high in pairwise(places)]
    assert min(between) > LETTER - 1e-9 and min(places) >= 0 and max(places) <= 1
    assert {name.get_text() for name in axes.texts} == {"0", "1", "2"}
    if ends == [0.1, 0.5, 0.9]:
        assert places == pytest.approx(ends), "where there is room they stand at the end of their line"
