"""Latents that come again: a permuted copy does always, chance does not, and numbers worked by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small
import torch
from killing import Killed, survives
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csc_array
from test_evaluate import project, trained  # noqa: F401
from test_train import TARGETS, knobs, stored

import strata
from strata.interpretation import export
from strata.replication import cofiring, pooled, read, replication
from strata.replication.certificate import Dictionary, Thresholds, certificates, compared, summary
from strata.replication.match import NOBODY, assigned, by_cosine, similar
from strata.run import files
from strata.run.door import BadInput
from strata.run.files import write_json
from strata.sae import disk
from strata.sae.sae import SAE
from strata.training import training

LEAST = Thresholds(0.7, 0.7)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(directions: torch.Tensor, threshold: float = 0.5) -> SAE:
    """An SAE that reads what it writes."""
    latents, width = directions.shape
    return SAE(
        directions, torch.zeros(latents), directions, torch.zeros(width), threshold=torch.full((latents,), threshold)
    )


def permuted(sae: SAE, order: torch.Tensor) -> SAE:
    assert sae.threshold is not None
    return SAE(sae.encoder[order], sae.b_enc[order], sae.decoder[order], sae.b_dec, threshold=sae.threshold[order])


# --- matching -----------------------------------------------------------------------------------------------------


def test_three_latents_by_hand():
    """The second copy of a direction has only what is left; a pair at the threshold is none."""
    first = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    second = torch.tensor([[2.0, 0], [0.8, 0.6], [0, -1]])
    pairs = by_cosine(first, second, 0.7)
    assert pairs.best.round(6).tolist() == [1, 1, 0.6]
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    partner = assigned(pairs)
    assert sorted(partner[:2].tolist()) == [0, 1] and partner[2] == NOBODY
    assert assigned(by_cosine(first, second, 0.81))[:2].tolist().count(NOBODY) == 1


def test_the_sum_is_largest_and_not_each_latent_greedy():
    """0.9 + 0.0 for the greedy choice; 0.8 + 0.75 together."""
    value = np.array([[0.9, 0.8], [0.75, 0.0]])
    assert assigned(similar([value], (2, 2), 0.7)).tolist() == [1, 0]


def test_components_give_the_optimum_of_the_whole():
    """The Hungarian assignment of the whole matrix, in which a pair below the threshold is worth nothing."""
    random = np.random.default_rng(0)
    for size in (5, 40, 120):
        value = random.random((size, size + 7)) ** 3
        whole = np.where(value > 0.6, value, 0)
        rows, columns = linear_sum_assignment(whole, maximize=True)
        partner = assigned(similar(np.array_split(value, 3), value.shape, 0.6))
        kept = np.flatnonzero(partner != NOBODY)
        assert whole[kept, partner[kept]].sum() == pytest.approx(whole[rows, columns].sum())
        assert (whole[kept, partner[kept]] > 0.6).all() and len(set(partner[kept])) == len(kept)


def test_correlation_is_that_of_numpy():
    random = np.random.default_rng(0)
    one, other = (np.maximum(random.normal(size=(300, 6)) - 0.5, 0) for _ in range(2))
    other[:, :3] = one[:, :3] + 0.1 * other[:, :3]
    one[:, 5] = 0  # never fires
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(np.corrcoef(one.T, other.T)[:6, 6:])
    pairs = cofiring.by_correlation(csc_array(one), csc_array(other), 0.7)
    assert np.allclose(pairs.best, expected.max(1))
    assert pairs.first.tolist() == pairs.second.tolist() == [0, 1, 2]
    assert np.allclose(pairs.value, np.diag(expected)[:3])


def test_moving_keeps_how_a_latent_fires_but_not_where():
    random = np.random.default_rng(0)
    z = csc_array(np.maximum(random.normal(size=(200, 8)) - 1, 0))
    moved = cofiring.moved(z, random)
    for latent in range(8):
        before, after = (m[:, [latent]].toarray()[:, 0] for m in (z, moved))
        shifts = [shift for shift in range(200) if np.array_equal(np.roll(before, shift), after)]
        assert shifts and 0 not in shifts


# --- certificates -------------------------------------------------------------------------------------------------


def rows(count: int, directions: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Rows of 4 directions each."""
    random = generator(seed)
    chosen = torch.rand(count, len(directions), generator=random).topk(4, dim=1).indices
    codes = torch.zeros(count, len(directions)).scatter(1, chosen, 1 + torch.rand(count, 4, generator=random))
    return codes @ directions


def of(sae: SAE, x: torch.Tensor) -> Dictionary:
    return Dictionary(sae, cofiring.codes(sae, x.split(700)))


def directions(count: int, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator(seed)), dim=1)


def test_a_permuted_copy_comes_again_always():
    sae = made(directions(100))
    x = rows(2000, sae.decoder)
    draws = torch.randn(100, 64, generator=generator(5))
    copies = [permuted(sae, torch.randperm(100, generator=generator(seed))) for seed in (1, 2, 3)]
    by_seed = [compared(of(sae, x), of(copy, x), draws, LEAST, generator(9)) for copy in copies]
    table = certificates(by_seed, cofiring.fired(of(sae, x).z), len(x))
    assert (table["again"] == 1).all() and (table["again_cofiring"] == 1).all() and (table["seeds"] == 3).all()
    assert np.allclose(table["cosine"], 1, atol=1e-5) and np.allclose(table["cofiring"], 1)
    assert table["again_chance"].max() < 0.3 and (table["again_cofiring_chance"] == 0).all()
    numbers = summary(by_seed, cofiring.fired(of(sae, x).z))
    assert numbers["times"] == [0, 0, 0, 100]
    assert numbers["again"] == numbers["again_cofiring"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_dictionaries_of_random_directions_are_at_chance():
    first, second = made(directions(100)), made(directions(100, seed=1))
    x = torch.randn(4000, 64, generator=generator(2))
    seed = compared(of(first, x), of(second, x), directions(100, seed=3), LEAST, generator(4))
    numbers = summary([seed], cofiring.fired(of(first, x).z))
    for certificate, control in (("again", "random"), ("again", "rows"), ("again_cofiring", "moved")):
        assert numbers[certificate]["value"] == numbers["controls"][control][certificate]["value"] == 0
    best = numbers["best_cosine"]["value"], numbers["controls"]["random"]["best_cosine"]["value"]
    assert best[0] == pytest.approx(best[1], abs=0.02) and 0.2 < best[0] < 0.5


def test_what_fires_on_one_row_is_matched_by_accident():
    """And the chance beside it says so, for the rare latents alone."""
    rare, common = np.zeros((50, 40)), np.random.default_rng(0).random((50, 40))
    rare[np.arange(40), np.arange(40)] = 1
    z = csc_array(np.concatenate([rare, common], axis=1))
    own = Dictionary(made(directions(80)), z)
    seed = compared(own, own, directions(80, seed=3), LEAST, generator(4))
    table = certificates([seed], cofiring.fired(z), 50)
    assert (table["again_cofiring_chance"][:40] >= 0.5).all() and (table["again_cofiring_chance"][40:] == 0).all()


def test_the_columns_by_hand():
    """Three latents, two trainings: the first comes again in both, the second in one, the third never fires."""
    yes, no = torch.tensor([True, True, False]), torch.tensor([True, False, False])

    def seed(again: torch.Tensor, similarity: list[float]) -> dict[str, torch.Tensor]:
        result = {}
        for name in ("cosine", "cofiring", "random", "rows", "moved"):
            own = name in ("cosine", "cofiring")
            result[name] = torch.tensor(similarity if own else [0.1, 0.2, 0.3])
            result[f"{name}_again"] = again if own else torch.tensor([False, name == "rows", False])
        return result

    by_seed = [seed(yes, [0.9, 0.8, 0.5]), seed(no, [0.8, 0.4, 0.5])]
    fired = np.array([8, 4, 0])
    table = certificates(by_seed, fired, 16)
    assert table["again"].tolist() == [1, 0.5, 0] and table["density"].tolist() == [0.5, 0.25, 0]
    assert np.allclose(table["cosine"], [0.85, 0.6, 0.5]) and table["again_chance"].tolist() == [0, 1, 0]
    assert table["again_cofiring"][:2].tolist() == [1, 0.5] and np.isnan(table["again_cofiring"][2])
    numbers = summary(by_seed, fired)
    assert numbers["times"] == [1, 1, 1]
    assert numbers["again"] == pytest.approx({"value": 0.5, "low": 1 / 3, "high": 2 / 3})
    assert numbers["again_cofiring"] == pytest.approx({"value": 0.75, "low": 0.5, "high": 1})
    assert numbers["best_cosine"]["value"] == pytest.approx(0.65)


# --- the pool -----------------------------------------------------------------------------------------------------


def test_the_pool_by_hand():
    """A latent in two trainings is pooled once, from the first that has it; a double within one training is not two."""
    a, b, c, d = torch.eye(4)
    chosen = pooled.pool([torch.stack([a, b]), torch.stack([c, a, a + 0.1 * b]), torch.stack([d, c, a])], 0.7)
    assert chosen.training.tolist() == [0, 1] and chosen.source.tolist() == [0, 0]
    assert chosen.trainings.tolist() == [3, 2]
    doubled = pooled.pool([torch.stack([a, a + 0.1 * b]), torch.stack([c])], 0.7)
    assert len(doubled) == 0


def test_joined_latents_read_and_write_what_they_did():
    one = made(directions(6, 8))
    other = SAE(directions(5, 8, 1), torch.full((5,), 0.1), directions(5, 8, 1), torch.ones(8), threshold=torch.ones(5))
    chosen = pooled.Chosen(np.array([0, 0, 1]), np.array([4, 1, 3]), np.full(3, 2))
    both = pooled.joined([one, other], chosen)
    x = torch.randn(200, 8, generator=generator(7)) * 2
    expected = torch.stack([one.preactivations(x)[:, 4], one.preactivations(x)[:, 1], other.preactivations(x)[:, 3]], 1)
    assert torch.allclose(both.preactivations(x), expected, atol=1e-5)
    assert both.threshold is not None and both.threshold.tolist() == [0.5, 0.5, 1.0]


def test_a_pool_of_true_directions_beats_one_drawn_at_random():
    """With as many active latents a row, and its decoder fitted, it writes the truth again."""
    truth = directions(24, 32)
    x = rows(6000, truth, 3) + 0.5
    noise = [directions(24, 32, seed) for seed in (11, 12)]
    saes = [made(torch.cat([truth, other])) for other in noise]
    saes = [SAE(s.encoder, s.b_enc, s.decoder, torch.full((32,), 0.5), threshold=s.threshold) for s in saes]
    chosen = pooled.pool([s.decoder for s in saes], 0.9)
    assert chosen.source.tolist() == list(range(24)) and (chosen.training == 0).all()
    drawn = pooled.drawn([np.ones(48, bool)] * 2, 24, np.random.default_rng(0))
    assert len(drawn) == 24 and len({*zip(drawn.training.tolist(), drawn.source.tolist(), strict=True)}) == 24

    def error(which: pooled.Chosen) -> tuple[float, float]:
        sae = pooled.dictionary(saes, which, lambda: [x[:2000]], lambda: x[2000:].split(1000), 4.0)
        output, active = sae.reconstruct(x)
        return float((output - x).square().sum() / (x - x.mean(0)).square().sum()), float(active.float().mean())

    (good, l0), (bad, other_l0) = error(chosen), error(drawn)
    assert l0 == pytest.approx(4, abs=0.1) and other_l0 == pytest.approx(4, abs=0.1)
    assert good < 0.2 < 0.3 < bad


# --- trainings ----------------------------------------------------------------------------------------------------


def test_certified_latents_are_nearer_to_the_truth():
    """20 atoms and 40 latents, so that a part of them can be no atom."""
    x, atoms = rows(5000, directions(20, 16), 3) + 0.3, directions(20, 16)
    activations = stored(x, {"train": [0, 4000], "validation": [4000, 4500], "test": [4500, 5000]})
    own = knobs(latents=40, lr=1e-2, epochs=2, batch_size=100, dead_after=0.3, auxk_latents=10)
    saes = [training.train(activations, own, TARGETS, seed).best for seed in range(3)]

    test_rows = activations.read(*activations.split("test")).float()
    draws = replication.drawn_rows(activations, 40, generator(1))
    assert draws.shape == (40, 16) and abs(float(draws.mean())) < 0.1
    by_seed = [compared(of(saes[0], test_rows), of(other, test_rows), draws, LEAST, generator(2)) for other in saes[1:]]
    table = certificates(by_seed, cofiring.fired(of(saes[0], test_rows).z), len(test_rows))
    truth = by_cosine(saes[0].decoder, atoms, 0.7).best
    certified = table["again"] == 1
    assert 10 <= certified.sum() <= 38
    assert truth[certified].mean() > truth[~certified].mean() + 0.1


# --- the stage ----------------------------------------------------------------------------------------------------


def test_the_stage_certifies_and_pools(project: Path):  # noqa: F811
    """The same bytes again, and what interpret, the pages and the report make of it."""
    small.change(stability__seeds=2, interpret__filters__again={"min": 0.5, "max": None}, stability__cosine=0.9)
    small.run("select", "fetch_texts", "extract_texts", "stability")
    folder, report = project / "data/stability/0", project / "reports/stability/0.json"
    numbers, before = json.loads(report.read_text()), files.hashes(folder)
    assert numbers["seeds"] == [1, 2] and numbers["rows"] == 15
    assert 0.1 < numbers["again"]["value"] < 1 and sum(numbers["times"]) == numbers["latents"] == 32
    own, config = disk.load(project / "data/sae/0")
    for seed in (1, 2):
        other, other_config = disk.load(folder / str(seed))
        assert other.latents == own.latents and not torch.equal(other.decoder, own.decoder)
        assert other_config["metadata"]["strata"] == config["metadata"]["strata"]

    pooled_sae, _ = disk.load(folder / "pooled")
    table = pq.read_table(folder / read.POOLED).to_pylist()
    assert len(table) == pooled_sae.latents == numbers["pooled"]["latents"] > 0
    assert {row["seed"] for row in table} <= {0, 1, 2} and all(row["trainings"] >= 2 for row in table)
    test = numbers["pooled"]["test"]
    assert test["pooled"]["fvu"] < 1 and test["before"]["latents"] == 32 and test["before"]["delta_ce"] is None

    small.run("interpret", "explain")
    certified = pq.read_table(folder / read.LATENTS)
    statistics = pq.read_table(project / "data/latents/0/statistics.parquet")
    assert statistics["again"].to_pylist() == certified["again"].to_pylist()
    rows_of = statistics.to_pylist()
    assert any(row["dropped"] == "again_low" for row in rows_of)
    assert all(row["again"] >= 0.5 for row in rows_of if row["kept"])

    small.run("cluster", "merge", "invert", "steer_eval", "evaluate", "report")
    page = next((project / "reports/latents/0").glob("[0-9]*.html")).read_text()
    assert "of 2 trainings" in page
    whole, summary_file = (project / f"reports/{name}" for name in ("report.html", "summary.json"))
    assert ">Stability</h2>" in whole.read_text() and (project / "reports/plots/stability.png").is_file()
    assert json.loads(summary_file.read_text())["stability.0.again"] == numbers["again"]["value"]

    small.run("stability")
    assert files.hashes(folder) == before and json.loads(report.read_text()) == numbers


def test_after_a_kill_it_goes_on_at_the_training(project: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    small.change(stability__seeds=2)
    small.run("stability")
    folder, report = project / "data/stability/0", project / "reports/stability/0.json"
    whole = report.read_bytes(), files.hashes(folder / "2"), files.hashes(folder)
    shutil.rmtree(folder)
    with monkeypatch.context() as killing, pytest.raises(Killed):
        trainings = survives(killing, training, "train", 1)
        small.run("stability")
    assert len(trainings) == 1 and not folder.exists()
    with monkeypatch.context() as killing, pytest.raises(Killed):
        trainings = survives(killing, training, "train", 1)
        survives(killing, replication, "compared", 1)
        small.run("stability")
    assert len(trainings) == 1
    trainings = survives(monkeypatch, training, "train", 0)
    comparisons = survives(monkeypatch, replication, "compared", 1)
    small.run("stability")
    assert (len(trainings), len(comparisons)) == (0, 1)
    assert (report.read_bytes(), files.hashes(folder / "2"), files.hashes(folder)) == whole
    assert not list((project / ".scratch").glob("stability-*"))


def test_off_as_by_default_it_writes_skipped(project: Path, capsys: pytest.CaptureFixture[str]):  # noqa: F811
    small.run("stability")
    assert json.loads((project / "reports/stability/0.json").read_text()) == {"skipped": True}
    assert read.certificates(project / "data/stability/0", 32) is None
    assert capsys.readouterr().err == ""
    small.change(stability__seeds=1, train__from={"folder": "x", "sha256": "y"})
    small.run("stability")
    assert "was given" in json.loads((project / "reports/stability/0.json").read_text())["why"]


def test_certificates_of_another_sae_are_refused(tmp_path: Path):
    write_json(tmp_path / "meta.json", {"layer": 0, "latents": 32, "seeds": [1], "files": {}})
    with pytest.raises(BadInput, match="is of 32 latents, but the SAE has 16"):
        read.certificates(tmp_path, 16)
    assert tuple(export.CERTIFICATES) == read.CERTIFICATES


# --- in Python ----------------------------------------------------------------------------------------------------


def test_the_call_certifies_saes_in_memory():
    sae = made(directions(50))
    x, copy = rows(1000, sae.decoder), permuted(sae, torch.randperm(50, generator=generator(1)))
    other = made(directions(50, seed=8))
    table = strata.stability([sae, copy, other], x)
    assert list(table["latent"]) == list(range(50)) and (table["seeds"] == 2).all()
    assert ((table["again"] == 0.5) | (table["again"] == 1)).all() and table["again"].mean() < 0.6
    assert table["cosine"].min() > 0.5 and table["again_chance"].max() < 0.3
    assert table.equals(strata.stability([sae, copy, other], x.numpy()))
    strict = strata.stability([sae, copy], x, cosine=0.99, cofiring=0.99)
    assert (strict["again"] == 1).all() and (strict["again_cofiring"] == 1).all()


def test_what_the_call_cannot_use_is_said():
    sae, x = made(directions(6, 16)), torch.ones(10, 16)
    for saes, given, words in (
        ([sae], x, "two SAEs or more"),
        (sae, x, "two SAEs or more"),
        ([sae, 3], x, "it must be an SAE"),
        ([sae, sae], torch.ones(10, 4), r"saes\[0\] reads 16 numbers, but a row has 4"),
        ([sae, sae], "rows.npy", "rows is"),
        ([sae, sae], np.full((3, 16), "a"), "rows is an array of <U1"),
        ([sae, sae], x * torch.nan, "NaN"),
    ):
        with pytest.raises(BadInput, match=words):
            strata.stability(saes, given)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cosin": 0.5}, "cosine"),
        ({"cosine": 2.0}, "cosine is 2.0"),
        ({"seeds": 3}, "seeds"),
    ]
    for knob, words in wrong:
        with pytest.raises(BadInput, match=words):
            strata.stability([sae, sae], x, **knob)
