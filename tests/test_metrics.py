"""Measures: closed forms, and numbers worked by hand."""

import pytest
import torch

from strata.measure import quality
from strata.measure.quality import Errors, ce_recovered, compared


def measured(x, reconstruction, active=None) -> Errors:
    errors = Errors()
    errors.add(compared(x, reconstruction, torch.zeros(len(x)) if active is None else active))
    return errors


def test_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # mean (2, 0): variance 1 + 1
    errors = measured(x, torch.tensor([[1.0, 1.0], [3.0, 0.0]]), torch.tensor([3, 2]))
    assert errors.fvu() == 0.5
    assert errors.mse(scale=2.0) == 4 * 1 / 4
    assert errors.l0() == 2.5
    assert errors.mean_cosine() == pytest.approx((1 / 2**0.5 + 1) / 2)


def test_perfect_is_zero_and_the_mean_is_one():
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) + 7
    assert measured(x, x).fvu() == 0
    assert measured(x, x.mean(0).expand_as(x)).fvu() == pytest.approx(1, abs=1e-5)
    assert measured(x[:1].expand(4, 5), x[:4]).fvu() is None  # no variance, no fraction of it


def test_some_of_the_rows_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    found = compared(x, torch.zeros_like(x), torch.tensor([1, 2, 3])).of(torch.tensor([True, False, True]), x)
    assert found.total.tolist() == [1.0, 2.0] and found.error.tolist() == [1.0, 4.0] == found.squares.tolist()
    assert found.active.tolist() == [1, 3] and found.cosine.tolist() == [0.0, 0.0], "a row of zeros has no direction"


def test_blocks_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 5, generator=generator), torch.randn(90, 5, generator=generator)
    parts = Errors()
    for first in range(0, 90, 31):
        parts.add(compared(x[first : first + 31], y[first : first + 31], torch.ones(len(x[first : first + 31]))))
    whole = measured(x, y, torch.ones(90))
    assert parts.fvu() == pytest.approx(whole.fvu())
    assert (parts.rows, parts.l0()) == (90, 1)


def test_ce_recovered_by_hand():
    assert ce_recovered(10.0, 4.0, 2.0) == 0.75
    assert ce_recovered(10.0, 2.0, 2.0) == 1
    assert ce_recovered(10.0, 10.0, 2.0) == 0
    assert ce_recovered(2.0, 3.0, 2.0) is None  # the ablation does no harm: nothing to recover


def test_outlier_rows_are_left_out_of_fvu_inlier_and_named():
    x = torch.ones(10, 4) + torch.arange(10)[:, None] * 0.01
    x[9] *= 50
    found = quality.reconstruction(
        lambda rows: (torch.zeros_like(rows), torch.ones(len(rows))), [x[:4], x[4:]], 1.0, 2.0
    )
    inlier = x[:9]
    assert found["fvu_inlier"] == pytest.approx(
        float(inlier.square().sum() / (inlier - inlier.mean(0)).square().sum()), rel=1e-3
    )
    outliers = quality.outliers([x[:4], x[4:]], torch.tensor([7] * 9 + [3]), 2.0)
    assert outliers["rows"] == 1 and outliers["tokens"] == [(3, 1)]
    assert outliers["share_of_variance"] == pytest.approx(0.9, abs=0.001)  # the other nine lie a tenth of the way off
