"""Is A better than B? Spreads by hand, verdicts where the truth is known, what the command line takes and refuses."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

import strata
from apps.compare import folders, history, runs, words
from apps.compare.comparison import Comparison
from apps.compare.page import WIDTH, drawing, render
from apps.compare.table import as_csv, as_text
from src import compare as command
from strata.comparison import documents, paired
from strata.comparison.documents import Group
from strata.comparison.paired import Metric, Row, Side, Spread, compare, holm
from strata.comparison.words import listed
from strata.measure import quality
from strata.rows.batches import in_memory
from strata.run.door import BadInput
from strata.sae.sae import SAE

Floats = np.ndarray


def whole(name: str, a: Any, b: Any, seeds: bool = True, lower: bool = True) -> Metric:
    """A metric of which the value of each seed alone is known."""

    def side(values: Any) -> Side:
        return Side(np.array(values, float)[:, None], np.ones(1), tuple(range(len(values))) if seeds else None)

    return Metric(name, lower, side(a), side(b))


def crossed(random: np.random.Generator, seeds: int, items: int, shift: float = 0.0, same: bool = True) -> Metric:
    """A metric with an effect of each seed, of each document, and of both together; A's own are drawn anew."""
    base = random.normal(5, 2, items)

    def side(mean: float) -> Floats:
        own = random.normal(0, 0.3, items)  # documents that this configuration is better at
        return base + mean + own + random.normal(0, 0.3, (seeds, 1)) + random.normal(0, 0.5, (seeds, items))

    names = tuple(range(seeds)), tuple(range(seeds)) if same else tuple(range(seeds, 2 * seeds))
    a, b = (Side(side(mean), np.ones(items), of) for mean, of in zip((shift, 0.0), names, strict=True))
    return Metric("m", True, a, b, "documents")


# --- spreads ------------------------------------------------------------------------------------------------------


def test_pairs_and_groups_are_the_t_tests_of_scipy():
    a, b = [1.0, 2.0, 3.5], [0.0, 2.5, 1.0]
    tests: list[tuple[bool, Any]] = [(True, stats.ttest_rel(a, b)), (False, stats.ttest_ind(a, b, equal_var=False))]
    for seeds, expected in tests:
        row = compare([whole("m", a, b, seeds)])[0]
        assert row.paired is seeds
        assert row.p == pytest.approx(expected.pvalue, rel=1e-12)
        assert row.difference == pytest.approx(1.0)


def test_a_pair_by_hand():
    spread = paired.of_seeds(whole("m", [1, 2, 3], [0, 2, 1]))  # differences 1, 0, 2
    assert spread is not None
    assert (spread.variance, spread.freedom) == (pytest.approx(1 / 3), 2)


def test_pairs_are_matched_by_seed_and_not_by_place():
    a = Side(np.array([[1.0], [5.0], [9.0]]), np.ones(1), (0, 1, 2))
    b = Side(np.array([[9.1], [1.2], [5.0]]), np.ones(1), (2, 0, 1))
    row = compare([Metric("m", True, a, b)])[0]
    assert row.paired
    assert row.by_seed == pytest.approx((-0.2, 0.0, -0.1))


def test_the_spread_of_documents_is_that_of_a_bootstrap():
    random = np.random.default_rng(0)
    weights = random.uniform(1, 9, 60)
    a, b = (weights * random.normal(1, 0.2, (3, 60)) for _ in range(2))
    metric = Metric("m", True, Side(a, weights), Side(b, weights), "documents")
    draws = random.multinomial(60, np.full(60, 1 / 60), 20000)
    drawn = (draws @ (a.mean(0) - b.mean(0))) / (draws @ weights)
    spread = paired.of_items(metric)
    assert spread is not None
    assert spread.variance == pytest.approx(drawn.var(), rel=0.06)
    assert spread.freedom == 59


def test_spreads_add_with_satterthwaites_degrees():
    assert Spread(2.0, 4) + Spread(2.0, 4) == Spread(4.0, 8.0)
    assert (Spread(0.0, 4) + Spread(3.0, 7)).freedom == pytest.approx(7.0)
    assert Spread(0.0, 4) + Spread(0.0, 7) == Spread(0.0, 4)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03], 0.05) == pytest.approx([0.05 / 3, 0.025, 0.025])  # 0.03 fails, and ends it
    assert holm([0.03, 0.001, 0.02], 0.05) == pytest.approx([0.05, 0.05 / 3, 0.025])
    assert holm([], 0.05) == []


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lower", "verdict"), [(True, "better"), (False, "worse")])
def test_better_means_that_a_is_better(lower: bool, verdict: str):
    rows = compare([whole("m", [1.0, 1.1, 0.9], [2.0, 2.1, 1.91], lower=lower)])
    assert rows[0].verdict == verdict
    assert (rows[0].more_seeds, rows[0].more_items) == (0, 0)


def test_one_seed_decides_nothing_however_large_the_difference():
    for a, b in (([1.0], [100.0]), ([1.0, 1.0, 1.1], [100.0])):
        row = compare([whole("m", a, b)])[0]
        assert (row.verdict, row.p, row.low, row.high, row.more_seeds) == ("undecided", None, None, None, None)


def test_what_is_the_same_in_every_seed():
    row = compare([whole("m", [4.0, 4.0], [4.0 + 1e-12, 4.0])])[0]
    assert (row.verdict, row.difference, row.p, row.more_seeds) == ("undecided", 0.0, 1.0, None)
    assert compare([whole("m", [4.0, 4.0], [5.0, 5.0])])[0].verdict == "better"


def test_seeds_that_agree_decide_nothing_while_documents_do_not():
    """A is better by as much in every seed, but on one of eight documents alone."""
    by_document = np.array([-8.0, 0.01, -0.01, 0.0, 0.02, -0.02, 0.01, 0.0])
    a = Side(by_document + 0.001 * np.arange(3.0)[:, None], np.ones(8), (0, 1, 2))
    b = Side(np.zeros((3, 8)), np.ones(8), (0, 1, 2))
    row = compare([Metric("m", True, a, b, "documents")])[0]
    assert row.verdict == "undecided"
    assert row.more_seeds is None and row.more_items is not None and row.more_items > 8 and not row.together
    assert compare([Metric("m", True, a, b)])[0].verdict == "better"


def test_an_interval_excludes_0_exactly_where_there_is_a_verdict():
    random = np.random.default_rng(1)
    seen = set()
    for _ in range(100):
        rows = compare([crossed(random, 3, 30, shift) for shift in (0.0, 0.5, 3.0)])
        for row in rows:
            assert row.low is not None and row.high is not None
            decided = row.low > 0 or row.high < 0
            assert decided == (row.verdict != "undecided")
            seen.add(row.verdict)
    assert seen >= {"worse", "undecided"}


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("seeds", "items"), [(2, 40), (3, 40), (3, 8), (5, 200)])
def test_a_table_without_a_difference_has_a_verdict_in_at_most_5_of_100(same: bool, seeds: int, items: int):
    random = np.random.default_rng(2)
    tables = [compare([crossed(random, seeds, items, same=same) for _ in range(3)]) for _ in range(300)]
    wrong = sum(any(row.verdict != "undecided" for row in table) for table in tables)
    assert wrong <= 300 * 0.05 + 3 * (300 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("mean", [0.3, 1.0, 3.0])
def test_counts_that_agree_by_chance_decide_nothing(seeds: int, mean: float):
    """Dead latents of 1,000: in a tenth of the tables all pairs of two seeds differ by the same number."""
    random = np.random.default_rng(3)
    tables = [random.poisson(mean, (2, seeds)) / 1000 for _ in range(1000)]
    decided = 0
    for a, b in tables:
        of_a, of_b = (Side(side[:, None], np.ones(1), tuple(range(seeds))) for side in (a, b))
        decided += compare([Metric("dead", True, of_a, of_b, step=1 / 1000)])[0].verdict != "undecided"
    assert decided <= 1000 * 0.05 + 3 * (1000 * 0.05 * 0.95) ** 0.5


def test_as_many_seeds_as_are_asked_for_decide_four_times_of_five():
    """The spread is the true one, so that nothing of the count is luck."""
    difference, each = 1.0, 1.0
    count = next(n for n in range(2, 99) if Spread(each / n, n - 1).suffices(difference, 0.05))
    random = np.random.default_rng(3)
    drawn = [whole("m", random.normal(-1, 1, count), np.zeros(count)) for _ in range(1000)]
    decided = sum(compare([metric])[0].verdict == "better" for metric in drawn)
    assert 0.76 <= decided / 1000 <= 0.9


def test_the_seeds_and_documents_that_would_decide():
    random = np.random.default_rng(4)
    metric = crossed(random, 3, 40, 0.45)
    row = compare([metric])[0]
    assert row.verdict == "undecided" and row.more_seeds is not None
    level = row.level or 0.0
    items = paired.of_items(metric)
    assert items is not None
    each = float((metric.a.values - metric.b.values).var(ddof=1))

    def decides(count: int) -> bool:
        seeds = Spread(each / count, count - 1)
        return all(spread.suffices(row.difference, level) for spread in (seeds, seeds + items))

    assert decides(3 + row.more_seeds) and not decides(2 + row.more_seeds)


def test_seeds_and_documents_that_decide_together_alone():
    """Both spreads are larger than the difference, so that neither more seeds nor more documents do alone."""
    by_seed, by_document = np.array([-1.0, 1.0, 0.3])[:, None], np.tile([-2.0, 2.0], 5)
    a = Side(0.5 + by_seed + by_document, np.ones(10), (0, 1, 2))
    row = compare([Metric("m", True, a, Side(np.zeros((3, 10)), np.ones(10), (0, 1, 2)), "documents")])[0]
    assert row.verdict == "undecided" and row.together
    assert row.more_seeds is not None and row.more_items == -(-10 * row.more_seeds // 3)
    assert f"{row.more_seeds} more seeds on each side and {row.more_items} more documents" == words.more(row)


def test_sides_that_were_not_measured_alike_are_refused():
    a, b = Side(np.ones((2, 3)), np.ones(3)), Side(np.ones((2, 2)), np.ones(2))
    with pytest.raises(BadInput, match="m was not measured on the same documents"):
        compare([Metric("m", True, a, b, "documents")])
    with pytest.raises(BadInput, match="m is not a finite number for every seed"):
        compare([whole("m", [1.0, np.nan], [1.0, 2.0])])
    with pytest.raises(BadInput, match="no metric in common"):
        compare([])


# --- SAE folders --------------------------------------------------------------------------------------------------

FEATURES, DIMENSIONS, ACTIVE = 24, 16, 3


def directions() -> torch.Tensor:
    """(feature, width) of length 1."""
    return torch.nn.functional.normalize(torch.randn(FEATURES, DIMENSIONS, generator=generator(0)), dim=1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sums_of_directions(rows: int) -> torch.Tensor:
    random = generator(1)
    codes = torch.rand(rows, FEATURES, generator=random) + 0.5
    return (codes * (torch.rand(rows, FEATURES, generator=random) < ACTIVE / FEATURES)) @ directions()


def near_truth(noise: float, seed: int, length: float = 1.0) -> SAE:
    """An SAE with the true directions, each a little off, as if trained with this seed. ``length``: of decoder rows."""
    decoder = directions() + noise * torch.randn(FEATURES, DIMENSIONS, generator=generator(100 + seed))
    decoder = torch.nn.functional.normalize(decoder, dim=1)
    return SAE(decoder, torch.zeros(FEATURES), length * decoder, torch.zeros(DIMENSIONS), k=ACTIVE)


def test_documents_sum_to_what_train_reports():
    x = sums_of_directions(400)
    x[395] *= 50  # an outlier
    rows = in_memory(x, {"train": (0, 200), "validation": (200, 250), "test": (250, 400)})
    document = np.repeat(np.arange(30) * 7, 5)
    sae = near_truth(0.1, 0)
    metrics = {m.name: m for m in documents.compared(Group([sae]), Group([near_truth(0.1, 1)]), rows, document)}
    expected = quality.reconstruction(sae.reconstruct, rows.blocks(250, 400), rows.scale, rows.median_norm)
    for name in ("fvu_inlier", "l0"):
        assert metrics[name].a.values == pytest.approx([expected[name]], rel=1e-6)
        assert metrics[name].a.sums.shape == (1, 30)
    assert expected["fvu_inlier"] != pytest.approx(expected["fvu"], rel=1e-3)  # the outlier counts
    counts = quality.firing_counts(sae, rows.blocks(0, 400))
    assert metrics["dead"].a.values == pytest.approx([float((counts == 0).double().mean())])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a layer, and SAEs beside them: good-0 … good-2 and poor-0 … poor-2, as if of three seeds."""
    folder = tmp_path_factory.mktemp("compare")
    rows = strata.store(sums_of_directions(600), layer=6, folder=folder / "rows")
    origin = {"hook_name": "blocks.6.hook_resid_post"}
    ours = {
        "model_fingerprint": rows.activations.meta["model"]["fingerprint"],
        "corpus": rows.activations.meta["corpus"],
    }
    for seed in range(3):
        for name, trained_with, length in (("good", seed, 0.6), ("again", 10 + seed, 0.6), ("poor", seed, 1.0)):
            facts = {**origin, "strata": {**ours, "seed": trained_with}}
            strata.save(near_truth(0.03, trained_with, length), folder / f"{name}-{seed}", facts)
    return folder


def written() -> list[dict[str, str]]:
    """The lines of the CSV."""
    return list(csv.DictReader(Path("reports/compare/metrics.csv").read_text().splitlines()))


def test_folders_from_the_command_line(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(home)
    command.main("good-*", "poor-0,poor-1,poor-2", "rows")
    said = capsys.readouterr().out
    assert said.startswith("A is better than B in fvu_inlier.\nA  good-0, good-1, good-2\nB  poor-0, poor-1, poor-2\n")
    lines = written()
    assert [line["metric"] for line in lines] == ["fvu_inlier", "l0", "dead"]
    assert [line["verdict"] for line in lines] == ["better", "undecided", "undecided"]
    assert lines[0]["paired"] == "True" and lines[0]["items"] == "documents" and len(lines[0]["by_seed"].split()) == 3
    assert float(lines[0]["high"]) < 0
    page = Path("reports/compare/index.html").read_text()
    assert "<h1>A is better than B in fvu_inlier.</h1>" in page
    assert page.count("<svg") == 3 and "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_two_groups_of_one_configuration_are_undecided(home: Path):
    found = folders.compare(f"{home}/good-*", f"{home}/again-*", home / "rows")
    assert {row.verdict for row in found.rows} == {"undecided"}
    assert not any(row.paired for row in found.rows)
    assert found.verdict.startswith("Undecided: in no metric")


def test_one_folder_shows_its_numbers_and_says_what_to_do(home: Path):
    found = folders.compare(f"{home}/good-*", f"{home}/poor-0", home / "rows")
    assert found.verdict == "Undecided: one seed decides nothing. Train B again with another seed, on the same rows."
    assert found.rows[0].b > found.rows[0].a
    text = as_text(found, 100, False)
    assert "needs two seeds or more on each side" in text and "fvu_inlier" in text


def test_folders_that_cannot_be_compared(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(home)

    def refused(a: str, b: str, match: str, rows: str = "rows") -> None:
        with pytest.raises(BadInput, match=match):
            command.main(a, b, rows, str(tmp_path))

    def saved(name: str, sae: Any = None, **facts: Any) -> str:
        config = json.loads(Path("good-0/cfg.json").read_text())["metadata"]
        strata.save(sae or near_truth(0.05, 77), tmp_path / name, {**config, **facts})
        return str(tmp_path / name)

    refused("good-0,good-9", "poor-0", r"A: good-9 is no folder of an SAE: it has no cfg.json; did you mean good-\d\?")
    refused("good-0,good-0", "poor-0", "A has one SAE twice")
    refused("good-0,good-1", "good-1", "good-1 in A and good-1 in B are the same SAE")
    refused("good-0", "main", "good-0 is a folder and main is none")
    refused("good-0", "poor-0", "holds no activations; name the folder", "elsewhere")
    refused("good-0", saved("layer", hook_name="blocks.7.hook_resid_post"), "not of one layer or hook")
    refused("good-0", saved("text", strata={"corpus": "0" * 64}), "not of one text or split of it")
    refused("good-0", saved("model", strata={"model_fingerprint": "0" * 64}), "not of one model")
    other = {"strata": {"corpus": "1" * 64}}
    refused(
        saved("x", **other), saved("y", near_truth(0.2, 5), **other), "trained on another text .* may be among those"
    )
    wide = SAE(torch.eye(32, DIMENSIONS), torch.zeros(32), torch.eye(32, DIMENSIONS), torch.zeros(DIMENSIONS), k=2)
    refused(
        f"good-0,{saved('wide', wide)}", "poor-0", "24 latents and .* 32, so that they differ in more than their seed"
    )
    thin = SAE(torch.eye(8), torch.zeros(8), torch.eye(8), torch.zeros(8), k=2)
    refused("good-0", saved("thin", thin), "an SAE is of width 8, but the rows are of width 16")


# --- experiments and commits --------------------------------------------------------------------------------------


def git(*words: str, **more: Any) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True, **more).stdout.strip()


class Project:
    """A repository of runs, made without DVC: each is a commit that DVC's name of an experiment points at."""

    def __init__(self) -> None:
        git("init", "-q", "-b", "main")
        git("config", "user.name", "someone")
        git("config", "user.email", "someone@example.org")
        self.base = self.commit(0, 32)

    def commit(self, seed: int, k: int, code: str = "c0", lm: str = "m0", **more: Any) -> str:
        random = np.random.default_rng([seed, k])
        split = np.random.default_rng(seed).normal(0, 0.05)  # of the documents: the same for all runs of a seed
        params = {
            "seed": seed,
            "fetch": {"corpus": {"documents": more.get("documents", 400)}},
            "extract": {"context": 128, "layers": more.get("extracted")},
            "layers": [9],
        }
        params |= {"train": {"k": k, "ce_tokens": more.get("ce_tokens", 1536)}, "evaluate": {"seeds": 5}}
        ran = {"seed": more.get("ran", seed), "train": params["train"]}
        outs = {
            "fetch_lm": ("data/lm", lm),
            "fetch_corpus": ("data/corpus", f"t{seed}"),
            "evaluate@9": ("reports/evaluate/9.json", f"ab{seed}{k}"),
        }
        stages = {name: {"cmd": "", "outs": [{"path": path, "md5": md5}]} for name, (path, md5) in outs.items()}
        stages["train@9"] = {"deps": [{"path": "strata/training", "md5": code}], "params": {"params.yaml": ran}}
        # DVC keeps what it knows of a layer that is no longer asked for.
        stages["train@3"] = {"params": {"params.yaml": {"seed": 7, "train": {"k": 5}}}}
        fvu = 8 / k + split + 0.002 * random.normal()
        accuracy = [0.6 + 0.001 * k + 0.02 * n + 0.001 * random.normal() for n in range(4)]
        layer = more.get("layer", 9)
        summary = {f"train.{layer}.{name}": value for name, value in (("fvu_inlier", fvu), ("l0", k), ("mse", 1.0))}
        summary |= {f"train.{layer}.delta_ce": fvu / 2, f"evaluate.{layer}.probing.sae.1": float(np.mean(accuracy))}
        report = {"probing": {"labels": [{"label": f"l{n}", "accuracy": {"value": a}} for n, a in enumerate(accuracy)]}}
        cached = Path(".dvc/cache/files/md5/ab") / f"{seed}{k}"
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(json.dumps(report))
        Path("params.yaml").write_text(yaml.safe_dump(params))
        Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
        Path("reports").mkdir(exist_ok=True)
        Path("reports/summary.json").write_text(json.dumps(summary))
        git("add", "-f", "params.yaml", "dvc.lock", "reports/summary.json")
        git("commit", "-q", "--allow-empty", "-m", f"k {k}, seed {seed}")
        return git("rev-parse", "HEAD")

    def experiment(self, name: str, seed: int, k: int, **more: Any) -> str:
        """A run off the main line, under the name that DVC would give it."""
        commit = self.commit(seed, k, **more)
        git("reset", "-q", "--hard", self.base)
        git("update-ref", f"refs/exps/{self.base[:2]}/{self.base[2:]}/{name}", commit)
        return commit


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "cache_folder", lambda: Path(".dvc/cache"))
    return Project()


def test_runs_that_differ_in_their_seed_are_one_group(project: Project, capsys: pytest.CaptureFixture[str]):
    for seed in (1, 2):
        project.experiment(f"base-{seed}", seed, 32)
    for seed in (0, 1, 2):
        project.experiment(f"k64-{seed}", seed, 64)
    project.experiment("other-code", 3, 64, code="c1")
    project.experiment("k16", 0, 16)
    command.main("main", "k64-1")
    said = capsys.readouterr().out
    assert "A  main (seed 0), base-1 (seed 1), base-2 (seed 2)" in said
    assert "B  k64-0 (seed 0), k64-1 (seed 1), k64-2 (seed 2)" in said
    lines = {line["metric"]: line for line in written()}
    assert list(lines) == ["train.9.fvu_inlier", "train.9.l0", "train.9.delta_ce", "evaluate.9.probing.sae.1"]
    assert {line["paired"] for line in lines.values()} == {"True"}
    # Splits move both sides of a pair alike, so that the difference is seen.
    assert [line["verdict"] for line in lines.values()] == ["worse", "better", "worse", "worse"]
    assert lines["evaluate.9.probing.sae.1"]["items"] == "tasks"
    assert lines["evaluate.9.probing.sae.1"]["item_count"] == "4"
    assert said.startswith("A trade: A is better in train.9.l0, B in ")


def test_a_run_of_fewer_layers_is_compared_in_those_that_both_have(
    project: Project, capsys: pytest.CaptureFixture[str]
):
    """`-S layers=[9] -S extract.layers=[3,6,9]` trains one SAE on the rows that are there."""
    project.experiment("only9", 0, 64, extracted=[3, 6, 9])
    command.main("main", "only9")
    assert capsys.readouterr().out.startswith("Undecided: one seed decides nothing.")


def test_one_seed_of_runs(project: Project, capsys: pytest.CaptureFixture[str]):
    project.experiment("base-1", 1, 32)
    project.experiment("k64", 0, 64)
    command.main("main", "k64")
    said = capsys.readouterr().out
    assert said.startswith("Undecided: one seed decides nothing. Train B again with `-S seed=1`.\n")
    assert "A  main (seed 0)\n" in said
    assert "Only one side has seed 1: that was left out." in said
    assert "train.9.fvu_inlier" in said


def test_groups_that_are_named_one_by_one(project: Project):
    for seed in range(1, 6):
        project.experiment(f"s{seed}", seed, 32)
    found = runs.compare("main,s1,s2", "s3,s4,s5")
    assert found.members_b == ["s3 (seed 3)", "s4 (seed 4)", "s5 (seed 5)"]
    assert {row.verdict for row in found.rows} == {"undecided"}
    with pytest.raises(BadInput, match=r"A and B both have .*differ in nothing but the seed"):
        runs.compare("main", "s1")


def test_runs_that_cannot_be_compared(project: Project):
    project.experiment("k64", 0, 64)
    project.experiment("long", 0, 64, documents=800)
    project.experiment("gpt", 0, 64, lm="m1")
    project.experiment("layer6", 0, 64, layer=6)
    project.experiment("stale", 1, 64, ran=0)
    Path("empty").touch()
    git("add", "empty")
    git("rm", "-q", "reports/summary.json")
    git("commit", "-qm", "no run")

    def refused(a: str, b: str, match: str, layer: int | None = None) -> None:
        with pytest.raises(BadInput, match=match):
            runs.compare(a, b, layer)

    refused(project.base, "k46", r"k46 is no experiment, no commit and no folder; did you mean k64\?")
    refused("HEAD", "k64", "HEAD has no reports/summary.json: it holds no finished run")
    refused(project.base, "long", "not judged on the same rows: fetch.corpus.documents is 400 in .* and 800 in long")
    refused(project.base, "gpt", "of different models")
    refused(project.base, "layer6", "A has layer 9 and B layer 6: two layers cannot be compared")
    refused(project.base, "k64", r"layer 3 is not in both A \(9\) and B \(9\)", 3)
    refused(project.base, "stale", r"stale: seed is 1 in params.yaml, but train@9 last ran with 0")
    refused(f"{project.base},k64", "layer6", "A: .* and k64 differ in train.k, not in their seed alone")
    refused(f"{project.base},{project.base}", "k64", "have the same seed, 0")


CONFLICT = "<<<<<<< ours\n{0}=======\n{0}>>>>>>> theirs\n"
UNREADABLE: list[tuple[str, Callable[[str], str | bytes], str]] = [
    ("params.yaml", lambda text: f"# café\n{text}".encode("latin-1"), "holds text that is not UTF-8"),
    ("params.yaml", lambda text: text.replace("seed: 1", "sed: 1"), "seed is None, not a whole number"),
    ("params.yaml", lambda text: text.replace("seed: 1", "seed: one"), "seed is 'one', not a whole number"),
    ("params.yaml", lambda text: f"{text}seed: 1\n", "is not valid YAML: seed is there twice"),
    ("params.yaml", CONFLICT.format, "is not valid YAML"),
    ("dvc.lock", CONFLICT.format, "is not valid YAML"),
    ("dvc.lock", lambda text: f"# café\n{text}".encode("latin-1"), "holds text that is not UTF-8"),
    ("dvc.lock", lambda text: "", "is None, but it should be"),
    ("dvc.lock", lambda text: text.replace("stages:", "states:"), "stages is missing"),
    ("dvc.lock", lambda text: text.replace("path: strata", "name: strata"), r"deps\.0\.path is missing"),
    ("reports/summary.json", CONFLICT.format, "is not valid JSON"),
    ("reports/summary.json", lambda text: "[1]", "is no object"),
]


def test_commits_that_cannot_be_read_are_passed_over_unless_they_are_named(project: Project):
    project.experiment("k64", 0, 64)
    unharmed = project.experiment("base-1", 1, 32)
    git("update-ref", "-d", f"refs/exps/{project.base[:2]}/{project.base[2:]}/base-1")
    for number, (path, harm, _) in enumerate(UNREADABLE):
        git("checkout", "-q", "-b", f"harmed-{number}", unharmed)
        changed = harm(Path(path).read_text())
        Path(path).write_bytes(changed.encode() if isinstance(changed, str) else changed)
        git("commit", "-qam", f"harmed {number}")
    git("checkout", "-q", "main")

    def alike() -> list[str]:
        found = history.History()
        return [run.name for run in found.like(found.find("main"), runs.STAGES)]

    assert alike() == ["main"]
    git("branch", "unharmed", unharmed)
    assert alike() == ["main", "unharmed"]
    assert runs.compare("main", "k64").members_b == ["k64 (seed 0)"]

    for number, (path, _, said) in enumerate(UNREADABLE):
        with pytest.raises(BadInput, match=f"^harmed-{number}:{path}.*{said}") as refusal:
            history.History().find(f"harmed-{number}")
        assert "\n" not in str(refusal.value)


def test_what_was_not_measured_alike_is_left_out(project: Project):
    project.experiment("few", 0, 64, ce_tokens=64)
    found = runs.compare("main", "few")
    assert "train.9.delta_ce" not in {row.metric for row in found.rows}
    assert found.notes == ["delta_ce was left out: train.ce_tokens differs, so that it was not measured alike."]


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(BadInput, match="no git repository here"):
        history.History()


STAGE = """
import json, random, yaml
params = yaml.safe_load(open("params.yaml"))
k, luck = params["train"]["k"], random.Random(params["seed"]).random() / 50
labels = [{"label": f"l{n}", "accuracy": {"value": 0.6 + k / 100 + luck / 10}} for n in range(3)]
accuracy = sum(label["accuracy"]["value"] for label in labels) / 3
found = {"train.9.l0": k, "train.9.fvu_inlier": 1 / k + luck, "evaluate.9.probing.sae.1": accuracy}
json.dump(found, open("reports/summary.json", "w"))
json.dump({"probing": {"labels": labels}}, open("reports/evaluate/9.json", "w"))
"""


@pytest.mark.slow
def test_experiments_of_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The commands of docs/compare.md on a project of one quick stage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "true")
    stage = {
        "matrix": {"layer": [9]},
        "cmd": "python stage.py",
        "deps": ["stage.py"],
        "params": ["seed", "train"],
        "outs": ["reports/evaluate/9.json"],
        "metrics": [{"reports/summary.json": {"cache": False}}],
    }
    Path("stage.py").write_text(STAGE)
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    Path("params.yaml").write_text(yaml.safe_dump({"seed": 0, "train": {"k": 4}}))
    for folder in ("reports", "reports/evaluate"):
        Path(folder).mkdir()
    Path("reports/.gitkeep").touch()

    def dvc(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    dvc("init", "-q")
    git("config", "user.name", "someone")
    git("config", "user.email", "someone@example.org")
    git("add", ".")
    git("commit", "-qm", "begin")
    dvc("repro", "-q")
    git("add", "-A")
    git("commit", "-qm", "the default run")
    for name, knobs in (("base-1", ["seed=1"]), ("k8", ["train.k=8"]), ("k8-1", ["train.k=8", "seed=1"])):
        changes = [part for knob in knobs for part in ("-S", knob)]
        dvc("exp", "run", "--queue", "-n", name, *changes)
    dvc("exp", "run", "--run-all")

    command.main("main", "k8-1")
    said = capsys.readouterr().out
    assert "A  main (seed 0), base-1 (seed 1)\nB  k8 (seed 0), k8-1 (seed 1)\n" in said
    lines = {line["metric"]: line for line in written()}
    assert lines["evaluate.9.probing.sae.1"]["items"] == "tasks"
    assert [line["verdict"] for line in lines.values()] == ["worse", "better", "worse"]


# --- words and drawings -------------------------------------------------------------------------------------------


def comparison(*rows: Row) -> Comparison:
    return Comparison("a", "b", ["a-0", "a-1"], ["b-0", "b-1"], "again", "rows", ["a note"], rows)


def test_the_verdict_in_words():
    better, worse, even = compare(
        [
            whole("x", [1, 1.01, 1.02], [2, 2, 2]),
            whole("y", [2, 2, 2.01], [1, 1, 1]),
            whole("z", [1, 2, 3], [2, 1, 3.1]),
        ]
    )
    assert [row.verdict for row in (better, worse, even)] == ["better", "worse", "undecided"]
    assert comparison(better, even).verdict == "A is better than B in x."
    assert comparison(worse, even).verdict == "B is better than A in y."
    assert comparison(better, worse).verdict == "A trade: A is better in x, B in y."
    assert comparison(even).verdict.startswith("Undecided: in no metric")
    assert listed(["x", "y", "z"]) == "x, y and z"
    assert listed(list("abcdefg")) == "a, b, c, d and 3 more"
    assert words.title("stability.9.again") == "share of latents that come again with another seed"
    assert words.title("train.9.l0") == "active latents a row" and words.title("evaluate.9.probing.sae.2") == ""
    assert "a note" in as_text(comparison(even), 100, True)
    assert as_csv(comparison(better, even)).count("\n") == 3


def test_a_drawing_has_a_on_the_right_where_a_is_better():
    for lower, a, b in ((True, 1.0, 2.0), (False, 2.0, 1.0)):
        row = compare([whole("x", [a, a + 0.01, a - 0.02], [b, b, b], lower=lower)])[0]
        drawn = drawing(row)
        assert row.verdict == "better"
        assert drawn.low is not None and drawn.high is not None
        assert drawn.zero < drawn.low < drawn.middle < drawn.high <= WIDTH
    alone = drawing(compare([whole("x", [0.0], [0.0])])[0])
    assert (alone.middle, alone.low) == (WIDTH / 2, None)


def test_names_are_inert_on_the_page():
    row = compare([whole("<b>x", [1.0, 2.0], [1.5, 1.0])])[0]
    assert "<b>x" not in render(comparison(row)) and "&lt;b&gt;x" in render(comparison(row))


def test_numbers_of_tasks_are_read_by_task():
    """A task has a row for each seed of its split, and rows of other regimes do not count."""
    rows = [
        {"task": "a", "seed": 0, "regime": "normal", "auc": {"last": {"sae": {"1": 0.6, "5": 0.7}}}},
        {"task": "a", "seed": 1, "regime": "normal", "auc": {"last": {"sae": {"1": 0.8, "5": 0.9}}}},
        {"task": "b", "seed": 0, "regime": "normal", "auc": {"last": {"sae": {"1": 0.5, "5": 0.5}}}},
        {"task": "b", "seed": 0, "regime": "scarcity", "auc": {"last": {"sae": {"1": 0.0, "5": 0.0}}}},
    ]
    report = {"tasks": {"by_task": rows}}
    assert runs._by_task("evaluate.9.tasks.normal.last.sae.auc.1", report) == pytest.approx({"a": 0.7, "b": 0.5})
    assert runs._by_task("evaluate.9.tasks.normal.last.sae.auc.5", report) == pytest.approx({"a": 0.8, "b": 0.5})
    assert runs._by_task("evaluate.9.tasks.normal.last.sae.auc.1", None) == {}
    assert runs._by_task("train.9.l0", report) is None
