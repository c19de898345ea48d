"""Probing, redundancy, core numbers: planted signals are found, chance is chance, and numbers worked by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from killing import Killed, survives
from sklearn.linear_model import LogisticRegression
from test_train import stored

from strata.device.machine import CPU
from strata.evaluation import evaluate as room
from strata.evaluation import meta, probing
from strata.evaluation import pooled as documents
from strata.evaluation.core import core
from strata.evaluation.intervals import over_seeds, weights
from strata.evaluation.redundancy import nearest, redundancy
from strata.sae import disk
from strata.sae.sae import SAE
from strata.training import training

WIDTH, DOCUMENTS, TOKENS, SIGNAL = 16, 120, 7, 5


def reading(directions: torch.Tensor, scale: float = 1.0) -> SAE:
    """f = relu(x Dᵀ), x̂ = scale · f D."""
    zero = torch.zeros(len(directions))
    return SAE(directions, zero, scale * directions, torch.zeros(directions.shape[1]), threshold=zero)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def planted() -> tuple[dict[str, np.ndarray], list[str]]:
    """Means of documents of noise, much of it on latent 0; those of label `a` have latent SIGNAL on one token more."""
    row_document = np.repeat(np.arange(DOCUMENTS), TOKENS)
    x = torch.rand(len(row_document), WIDTH, generator=generator()) * 0.1
    x[:, 0] *= 50
    x[:, SIGNAL] = 0
    x[torch.from_numpy(row_document % 3 == 0) & (torch.arange(len(x)) % TOKENS == 2), SIGNAL] = 20.0
    activations = stored(x, {"train": [0, len(x)], "validation": [0, 0], "test": [0, 0]})
    place = documents.places(row_document, np.arange(DOCUMENTS), None)
    parts = documents.Parts(activations, place, CPU)
    sae = reading(torch.eye(WIDTH))
    random = documents.untrained(sae, x, generator())
    means = documents.pooled({"sae": sae, "untrained": random}, parts, DOCUMENTS)
    return means, ["abc"[n % 3] for n in range(DOCUMENTS)]


def test_a_planted_latent_is_found_and_shuffled_labels_are_chance(planted: tuple[dict[str, np.ndarray], list[str]]):
    means, names = planted
    found = probing.probing(means, names, ["a"], [1, 2], 0.3, range(5))
    assert found["sae"]["1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    (label,) = found["labels"]
    assert label == {
        "label": "a", "documents": 40, "latent": SIGNAL, "chosen": 1.0,
        "accuracy": {"value": 1.0, "low": 1.0, "high": 1.0},
    }  # fmt: skip
    for k in ("1", "2", probing.ALL):
        chance = found["controls"]["shuffled"][k]
        assert chance["low"] <= 0.5 <= chance["high"] and chance["high"] - chance["low"] < 0.5
    assert found["controls"]["drawn"]["1"]["value"] < 0.8  # one latent in sixteen knows
    assert set(found["controls"]) == {"residual", "untrained", "shuffled", "drawn"}


def test_without_the_signal_no_latent_tells(planted: tuple[dict[str, np.ndarray], list[str]]):
    """Labels b and c differ in noise alone."""
    means, names = planted
    kept = [n for n, name in enumerate(names) if name != "a"]
    means = {name: x[kept] for name, x in means.items()}
    found = probing.probing(means, [names[n] for n in kept], ["b"], [1], 0.3, range(5))
    assert found["sae"]["1"]["low"] <= 0.5 <= found["sae"]["1"]["high"]
    assert found["labels"][0]["latent"] != SIGNAL


def test_a_document_is_the_mean_of_its_first_tokens():
    row_document = np.array([4, 4, 4, 2, 2, 9, 7, 7])
    x = torch.arange(16.0).view(8, 2)
    activations = stored(x, {"train": [0, 8], "validation": [0, 0], "test": [0, 0]})
    for tokens, first, second in ((None, x[3:5].mean(0), x[:3].mean(0)), (2, x[3:5].mean(0), x[:2].mean(0))):
        place = documents.places(row_document, np.array([2, 4]), tokens)
        assert place.tolist() == [1, 1, 1 if tokens is None else -1, 0, 0, -1, -1, -1]
        sae = reading(torch.tensor([[1.0, 0], [-1, 0], [1, 1]]))
        means = documents.pooled({"sae": sae}, documents.Parts(activations, place, CPU), 2)
        expected = torch.stack([first, second])
        assert torch.equal(torch.from_numpy(means["residual"]), expected)
        codes = torch.stack([expected[:, 0], torch.zeros(2), expected.sum(1)], dim=1)
        assert torch.allclose(torch.from_numpy(means["sae"]), codes)


def test_splits_are_balanced_and_apart():
    labelled = np.arange(50) < 12
    found = probing.split(labelled, 0.3, np.random.default_rng(0))
    assert len(found.train) == 2 * 8 and len(found.test) == 2 * 4
    assert not set(found.train) & set(found.test)
    assert (labelled[found.train] == found.y_train).all() and (labelled[found.test] == found.y_test).all()
    assert found.y_train.mean() == found.y_test.mean() == 0.5
    other = probing.split(~labelled, 0.3, np.random.default_rng(0))  # the rarer kind gives the number
    assert len(other.train) == 16 and other.y_test.mean() == 0.5


def test_the_commonest_labels():
    names = ["b"] * 3 + ["a"] * 3 + ["c"] * 2 + ["d"] * 9
    assert probing.commonest(names, 3, 10) == ["d", "a", "b"]
    assert probing.commonest(names, 3, 2) == ["d", "a"]
    assert probing.commonest(names, 9, 2) == []  # 8 have another label than d


def test_the_strongest_columns_by_hand():
    x = np.array([[1.0, 0, 5], [3, 0, 5], [0, 6, 5], [0, 2, 5]])
    y = np.array([True, True, False, False])  # means differ by 2, -4, 0
    assert probing.strongest(x, y, 2).tolist() == [1, 0]


def test_many_columns_give_what_the_plain_regression_gives():
    """Fitted in the span of the training rows, against the same problem as it stands."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 200)).astype(np.float32)
    x[:, 7] += 2 * (np.arange(60) < 30)
    of = probing.split(np.arange(60) < 30, 0.4, random)
    z = (x - x[of.train].mean(0)) / x[of.train].std(0)
    plain = LogisticRegression(C=1.0, max_iter=1000).fit(z[of.train], of.y_train)
    expected = (plain.predict(z[of.test]) == of.y_test).mean()
    assert probing.accuracy(x, of) == expected and 0.5 < expected < 1
    span = probing.spanned(x[of.train])
    assert np.allclose(span.T @ span, np.eye(len(of.train)), atol=1e-4)
    assert np.allclose(x[of.train] @ span @ span.T, x[of.train], atol=1e-3)


def test_nearest_directions_by_hand():
    rows = torch.tensor([[1.0, 0], [0, 2], [3, 3], [0, 5], [0, 0]])
    half = 0.5**0.5
    assert torch.allclose(nearest(rows), torch.tensor([half, 1, half, 1, 0]))
    sae = reading(torch.cat([torch.eye(WIDTH), torch.eye(WIDTH)[:4]]))
    found = redundancy(sae, 3, generator())
    assert found["decoder"]["above_0.9"]["value"] == pytest.approx(8 / 20)
    assert found["decoder"]["above_0.9"]["low"] < 8 / 20 < found["decoder"]["above_0.9"]["high"]
    assert found["encoder"] == found["decoder"]
    chance = found["controls"]["random"]
    assert chance["above_0.9"]["value"] == 0 and 0.2 < chance["cosine"]["low"] < chance["cosine"]["high"] < 0.7


def test_core_numbers_by_hand():
    """x̂ = x / 2 of positive rows; a latent a column, firing on all, on a fifth, on a fiftieth and on none of them."""
    x = torch.zeros(400, 4)
    for column, every in enumerate((1, 5, 50)):
        x[::every, column] = 2.0
    activations = stored(x, {"train": [0, 400], "validation": [0, 0], "test": [0, 400]})
    found = core(reading(torch.eye(4), 0.5), activations, np.arange(400) // 50, np.random.default_rng(0))
    assert found is not None
    expected = {"l2_ratio": 0.5, "relative_reconstruction_bias": 0.5}
    for name, value in expected.items():
        assert found[name] == pytest.approx({"value": value, "low": value, "high": value})
    assert found["frequency_above_0.01"]["value"] == 0.75 and found["frequency_above_0.1"]["value"] == 0.5
    assert core(reading(torch.eye(4)), stored(x, {**activations.meta["splits"], "test": [0, 0]}), np.zeros(0, int),
                np.random.default_rng(0)) is None  # fmt: skip


def test_intervals():
    assert over_seeds([0.5, 1.0, 0.6]) == {"value": pytest.approx(0.7), "low": 0.5, "high": 1.0}
    drawn = weights(10, np.random.default_rng(0), 50)
    assert drawn.shape == (50, 10) and (drawn.sum(1) == 10).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of three topics, as far as train."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small.make(folder)
        small.of_vectors()
        small.run("select", "fetch_lm", "fetch_corpus", "extract", "fetch_tasks", "extract_tasks", "tune", "train")
        small.run("controls", "stability")
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_takes_trainings_is_wired(project: Path, monkeypatch: pytest.MonkeyPatch):
    """And a given SAE is not held against trainings by knobs that did not make it."""
    monkeypatch.setattr(meta.meta_sae, "__defaults__", (50,))  # steps
    report = project / "reports/evaluate/0.json"
    small.change(evaluate__seeds=1, evaluate__meta=1)
    small.run("evaluate")
    found = json.loads(report.read_text())
    assert set(found["intervals"]) == {"core", "redundancy", "probing", "tasks", "rules", "meta"}
    assert found["meta"]["explained"]["value"] != found["meta"]["controls"]["random"]["explained"]["value"]
    assert 0 < found["meta"]["explained"]["value"] < 1
    small.change(train__from={"folder": "x", "sha256": "y"}, evaluate__meta=0, evaluate__absorption=1)
    small.run("evaluate")
    assert "was given" in json.loads(report.read_text())["absorption"]["why"]


def test_after_a_kill_it_goes_on_at_the_section_and_the_training(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meta.meta_sae, "__defaults__", (50,))  # steps
    report = project / "reports/evaluate/0.json"
    small.change(evaluate__seeds=1, evaluate__meta=1)  # two trainings: on the decoder, and on random directions
    small.run("evaluate")
    whole = report.read_bytes()
    report.unlink()
    with monkeypatch.context() as killing, pytest.raises(Killed):
        sections = survives(killing, room, "core", 1)
        trainings = survives(killing, training, "train", 1)
        small.run("evaluate")
    assert (len(sections), len(trainings)) == (1, 1) and not report.exists()
    survives(monkeypatch, room, "core", 0)
    trainings = survives(monkeypatch, training, "train", 1)
    small.run("evaluate")
    assert len(trainings) == 1 and report.read_bytes() == whole
    assert not list((project / ".scratch").glob("evaluate-*"))


def test_a_silent_sae_is_said_to_be_silent(project: Path):
    folder = Path("data/sae/0")
    sae, config = disk.load(folder)
    disk.save(folder, replace(sae, k=None, threshold=torch.full_like(sae.b_enc, 1e9)), config["metadata"])
    small.run("evaluate")
    found = json.loads((project / "reports/evaluate/0.json").read_text())
    assert "no latent is active" in found["probing"]["why"] and found["core"]["frequency_above_0.01"]["value"] == 0


def test_the_stage_on_vectors(project: Path):
    """A row is a document; three topics, which two of the eight numbers tell; the same bytes again; `run: false`."""
    report = project / "reports/evaluate/0.json"
    small.change(evaluate__seeds=2, evaluate__absorption=1)
    small.run("evaluate")
    first = report.read_bytes()
    found = json.loads(first)
    assert [row["label"] for row in found["probing"]["labels"]] == ["t0", "t1", "t2"]
    assert found["probing"]["documents"] == 150 and found["probing"]["tasks"] == 3
    for what in (found["probing"]["sae"], found["probing"]["controls"]["pca"]):
        assert what[probing.ALL]["value"] > 0.95
    assert found["core"]["l2_ratio"]["value"] == pytest.approx(1, abs=0.1)
    assert set(found["intervals"]) == {"core", "redundancy", "probing", "tasks", "rules", "absorption"}
    assert found["tasks"] == {"why": "there are no tasks for this layer, or no language model that reads their prompts"}
    small.run("evaluate")
    assert report.read_bytes() == first

    small.change(evaluate__absorption=0, evaluate__probing__least=80)
    small.run("evaluate")
    assert "no label has 80" in json.loads(report.read_text())["probing"]["why"]
    small.change(evaluate__run=False)
    small.run("evaluate")
    assert json.loads(report.read_text()) == {"skipped": True}
