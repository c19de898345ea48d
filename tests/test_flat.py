"""Few, flat, huge and tiny data: the numbers are right, or the sentence says what is wrong with the data."""

import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from stages.report.evaluated import costly
from strata import notebook
from strata.evaluation.core import core
from strata.evaluation.intervals import resampled
from strata.evaluation.meta import meta
from strata.evaluation.probing import Split, accuracy
from strata.extraction import documents
from strata.extraction.knobs import Extract
from strata.measure.quality import Errors, compared
from strata.notebook import Vectors
from strata.rows import spread
from strata.rows.batches import check_held_out, in_memory
from strata.run.door import BadInput
from strata.run.params import check, read
from strata.sae.sae import SAE, threshold_for
from strata.training.autoencoder import Scale
from strata.training.knobs import Train
from strata.verdict.shortfall import Made, shortfall

Rows = np.ndarray[Any, Any]
NOISE = np.random.default_rng(0).standard_normal((200, 8))


def vectors(x: Rows) -> Vectors:
    return Vectors(x.astype(np.float32), [f"v{n}" for n in range(len(x))], [""] * len(x))


def fvu(x: Rows, **knobs: Any) -> dict[str, float]:
    """What each of the table's lines reaches, after a short training."""
    small = {"latents": 16, "k": 4, "epochs": 2, "auxk_latents": 4, **knobs}
    table = notebook.train(vectors(x), **small).quality
    return dict(zip(table["what"], table["fvu"], strict=True))


def changed(row: int, value: float) -> Rows:
    x = NOISE.copy()
    x[row] = value
    return x


RANK_ONE = np.outer(NOISE[:, 0], np.ones(8))
FEW_LARGE = NOISE * np.where(np.arange(200) % 10 == 0, 50, 1)[:, None]

REFUSED: dict[str, tuple[Rows, str]] = {
    "three": (NOISE[:3], "3 vectors are too few: it takes two to train on"),
    "five": (NOISE[:5], "5 vectors are too few"),
    "all zero": (np.zeros((60, 8)), "the 60 vectors are zero, every one of them"),
    "constant": (np.ones((60, 8)), "the 48 training vectors do not vary: all are the same"),
    "all but one constant": (np.concatenate([np.ones((59, 8)), NOISE[:1]]), "do(es)? not vary|all the same"),
    "1e25": (NOISE * 1e25, "too large for sums of squares .* norm is 2.7e[+]25; multiply all of them by 1e-25"),
    "1e-25": (NOISE * 1e-25, "too small for sums of squares .* norm is 2.7e-25; multiply all of them by 1e25"),
    "denormal": (NOISE * 1e-40, "too small .* multiply all of them by 1e40"),
    "one no-data value": (changed(20, -3.4e38), r"vector 20 \(id v20\) has a norm of 9.6e[+]38, 4e[+]38 times"),
    "a no-data value in one column": (changed(7, 1e30), r"vector 7 \(id v7\) .* is it a value that stands for missing"),
    "an offset that float32 cannot hold": (NOISE + 1e8, "do not vary|differ by less than a millionth of their size"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_learnt_from_are_refused_by_what_is_wrong_with_them(name: str) -> None:
    x, why = REFUSED[name]
    with pytest.raises(BadInput, match=why) as refusal:
        fvu(x)
    assert not re.search(r"train\.|extract\.|\n", str(refusal.value)), "the data are wrong, no knob is"


def test_neither_scale_nor_offset_changes_what_is_learnt() -> None:
    plain = fvu(NOISE)
    assert plain["mean"] == pytest.approx(1, abs=0.1) and plain["SAE"] < plain["PCA, 4 components"] < 0.7
    for name, x in {"1e-10": NOISE * 1e-10, "1e10": NOISE * 1e10, "offset of 1000": NOISE + 1000}.items():
        assert fvu(x) == pytest.approx(plain, rel=0.01), name


def test_the_training_scale_of_rows_far_from_zero_by_hand() -> None:
    near = torch.tensor([[3.0, 0.0], [5.0, 0.0]])  # mean ‖x‖² 17, of which the variance is 1: enough
    found = spread.spread(lambda: [near], "rows")
    assert found.mean.tolist() == [4, 0] and found.scale == pytest.approx((2 / 17) ** 0.5) and found.median_norm == 4
    far = near + torch.tensor([1000.0, 0.0])  # rows at 1003 and 1005: the scale is that of ±1
    found = spread.spread(lambda: [far], "rows")
    assert found.mean.tolist() == [1004, 0] and found.scale == pytest.approx(2**0.5)
    splits: dict[str, tuple[int, int]] = dict.fromkeys(("train", "validation", "test"), (0, 2))
    for x, variance in ((near, 1 / 17), (far, 1.0)):
        scale = Scale.of(in_memory(x, splits))
        assert scale.variance == pytest.approx(variance)
        assert float(scale.apply(x).square().mean()) == pytest.approx(variance)


def test_rows_of_zeros_do_not_make_the_median_zero() -> None:
    x = torch.cat([torch.zeros(7, 2), torch.tensor([[3.0, 4.0], [0.0, 5.0], [6.0, 8.0]])])
    assert spread.spread(lambda: [x], "rows").median_norm == 5
    blocks = [x[:4], x[4:8], x[8:]]
    parts, whole = spread.spread(lambda: blocks, "rows"), spread.spread(lambda: [x], "rows")
    assert parts.scale == whole.scale and torch.equal(parts.mean, whole.mean)


def test_vectors_of_a_corpus_are_looked_at_before_they_are_stored(capsys: pytest.CaptureFixture[str]) -> None:
    params = check(read()["extract"], Extract, "extract")
    for value, refused in ((-3.4e38, True), (-999.0, False), (9.0, False)):
        x = changed(20, value).astype(np.float32)
        said = "the vector of id v20 has a norm of .* times the median of the vectors: is it a value that stands"
        with pytest.raises(BadInput, match=said) if refused else nullcontext():
            reading = documents.own_vectors(x, params, lambda row: f"id v{row}")
            kept = reading.forward(np.arange(5)[:, None], torch.arange(5), 0)
            assert torch.equal(kept[0], torch.from_numpy(x[:5])), "as they came"
            assert bool(re.search(said, capsys.readouterr().err)) == (value == -999)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "has 0 rows, and needs two"),
        ([[1.0, 2.0]], "has 1 row, and one alone does not vary"),
        ([[1.0, 2.0]] * 5, "has 5 rows, all the same"),
    ],
)
def test_a_split_that_nothing_can_be_judged_by(rows: list[list[float]], why: str) -> None:
    x = torch.cat([torch.tensor(NOISE[:9, :2]).float(), torch.tensor(rows).reshape(-1, 2)])
    held = in_memory(x, {"train": (0, 9), "validation": (0, 9), "test": (9, len(x))})
    check_held_out(held, "validation")
    with pytest.raises(BadInput, match=f"the test split {why}.*raise fetch.corpus.test"):
        check_held_out(held, "test")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_seeds_that_are_none(seed: Any) -> None:
    with pytest.raises(BadInput, match="seed"):
        fvu(NOISE[:60], seed=seed)


def test_a_threshold_for_hardly_any_active_latents() -> None:
    """With 0.001 a row, the first rows' share is none at all."""
    directions = torch.eye(8)
    sae = SAE(directions, torch.zeros(8), directions, torch.zeros(8), k=1)
    x = torch.from_numpy(NOISE).float()
    found = threshold_for(sae, lambda: [x], 0.005)
    assert int((x > found).sum()) == 1


def test_a_row_of_zeros_has_no_length_that_could_be_kept() -> None:
    """Kept is ‖x̂‖ / ‖x‖: of x = (3, 4) and x̂ = (3, 0) 3/5, of a zero row nothing; of zero rows alone null, no inf."""
    sae = SAE(torch.eye(2)[:1], torch.zeros(1), torch.eye(2)[:1], torch.zeros(2), k=1)
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]])
    splits: dict[str, tuple[int, int]] = dict.fromkeys(("train", "validation", "test"), (0, 3))
    found = core(sae, in_memory(x, splits), np.array([0, 1, 2]), np.random.default_rng(0))
    assert found is not None and found["l2_ratio"] == {name: pytest.approx(0.6) for name in ("value", "low", "high")}
    rows = in_memory(x, {**splits, "test": (1, 2)})
    found = core(sae, rows, np.array([1]), np.random.default_rng(0))
    nothing = {"value": None, "low": None, "high": None}
    assert found is not None and found["l2_ratio"] == found["relative_reconstruction_bias"] == nothing
    assert resampled(1.0, np.array([np.nan, 2.0, np.inf])) == {"value": 1.0, "low": 2.0, "high": 2.0}


def test_a_dictionary_too_small_for_an_sae_of_its_rows() -> None:
    knobs = check({**read()["train"], "from_tune": []}, Train, "train")
    said = meta(torch.eye(3), knobs, [0], torch.Generator())
    assert said == {"why": "a dictionary of 3 latents is too small for an SAE of its rows"}
    assert costly({"meta": said})[0][1] == said["why"], "and the report can show it"


def test_probes_of_nothing_are_at_chance() -> None:
    halves = Split(np.arange(4), np.array([True, True, False, False]), np.arange(4, 6), np.array([True, False]))
    for x in (np.zeros((6, 3), np.float32), np.ones((6, 9), np.float32), np.empty((6, 0), np.float32)):
        assert accuracy(x, halves) == 0.5


def test_cosine_of_tiny_and_huge_rows() -> None:
    for size in (1e-12, 1.0, 1e12):
        x = torch.tensor([[3.0, 4.0], [4.0, -3.0]]) * size
        errors = Errors()  # mean (3.5, 0.5): variance 50 − 2 × 12.5; error a quarter of 50
        errors.add(compared(x, x / 2, torch.zeros(2)))
        assert errors.mean_cosine() == pytest.approx(1) and errors.fvu() == pytest.approx(12.5 / 25)


# --- worse than nothing ----------------------------------------------------------------------------------------------

MADE = Made("batchtopk", latents=512, k=16, rows=4000, width=384, steps=2000, epochs=10, outliers=0.0)
TEST = {"fvu": 0.3, "fvu_inlier": 0.3, "l0": 16.0, "dead": 0.0}


def measured(value: float | None) -> dict[str, float | None]:
    return {"fvu": value, "fvu_inlier": value}


SAID: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "crowded": ({"latents": 4096, "rows": 3325}, {}, "latents on 3,325 rows are too many: try train.latents=512$"),
    "crowded, and k too": ({"latents": 64, "rows": 50}, {}, "try train.latents=8 and train.k=1$"),
    "exact PCA": ({"width": 16}, {}, "a row has 16 numbers, so that PCA is exact: try train.k=2$"),
    "one column": ({"width": 1}, {}, "a row has 1 number, so that PCA is exact: try train.k=1$"),
    "few steps": ({"steps": 500}, {}, "500 steps are few: try train.epochs=20$"),
    "few batches": ({"steps": 30}, {}, "30 steps are few: try train.batch_size=128 and train.epochs=33$"),
    "silent": ({"rule": "jumprelu"}, {"l0": 3.0}, "3 latents are active on a row, .* 16: try a lower train.l0_coeff"),
    "dead": ({}, {"dead": 0.8}, "80% of the latents are dead: try train.latents=64, or a higher train.auxk"),
    "outliers": ({"outliers": 0.97}, {}, "97% of the variance is in rows .* try train.outliers=skip"),
    "given": ({"steps": 0}, {}, "It was not trained here: is it of this model, this layer and this hook"),
    "nothing else": ({}, {}, "Try a higher train.k"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_to_try_is_chosen_by_what_is_measured(name: str) -> None:
    made, test, said = SAID[name]
    found = shortfall({**TEST, **test}, measured(1.0), measured(0.2), Made(**{**vars(MADE), **made}))
    assert found is not None and re.search(said, found)
    assert found.startswith("the SAE is worse than PCA of 16 components: fvu_inlier is 0.3, PCA's 0.2. ")


def test_an_sae_is_held_against_the_mean_and_pca() -> None:
    def said(own: float | None, mean: float, pca: float) -> str | None:
        return shortfall({**TEST, **measured(own)}, measured(mean), measured(pca), MADE)

    assert said(0.19, 1.0, 0.2) is None and said(0.2, 1.0, 0.2) is None
    assert said(9e-4, 1.0, 0.0) is None, "good, whatever PCA reaches"
    assert "worse than predicting the mean: fvu_inlier is 1.2, the mean's 1" in (said(1.2, 1.0, 0.2) or "")
    assert "training rows are unlike the test rows" in (said(40.0, 33.0, 0.2) or "")
    assert "no variance in the test rows" in (said(None, 1.0, 0.2) or "")
    whole = {**TEST, "fvu": 0.5, "fvu_inlier": None}
    assert "fvu is 0.5" in (shortfall(whole, measured(1.0), measured(0.2), MADE) or ""), "where no row is an inlier"


TOLD: dict[str, tuple[Rows, dict[str, Any], str]] = {
    "crowded": (NOISE, {"latents": 1024}, "than predicting the mean.*1,024 latents on 160 rows .* train.latents=16"),
    "exact PCA": (NOISE, {"k": 8}, "than PCA of 8 components.* so that PCA is exact: try train.k=1"),
    "few steps": (RANK_ONE, {}, "than PCA.*20 steps are few: try train.batch_size=8 and train.epochs=50"),
    "unlike": (changed(20, -999.0), {"outliers": "keep"}, "training rows are unlike the test rows"),
    "outliers": (FEW_LARGE, {"outliers": "keep"}, "9[0-9]% of the variance is in rows of more than 3 times"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_a_notebook_says_what_real_trainings_lack(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    x, knobs, said = TOLD[name]
    fvu(x, **knobs)
    last = capsys.readouterr().err.rpartition("train: the SAE is worse ")[2]
    assert re.search(said, last), last


def test_what_is_advised_helps(capsys: pytest.CaptureFixture[str]) -> None:
    """Outliers set the scale of all rows and the mean, unless these are left out of both."""
    for x, knobs in ((NOISE, {"latents": 16}), (FEW_LARGE, {"outliers": "skip"})):
        fvu(x, epochs=20, **knobs)
        assert "worse" not in capsys.readouterr().err
