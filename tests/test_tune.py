"""Tune: the space, the search, a trial's score, kill and resume, and what train takes of it."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import save_tiny_lm
from skopt.space import Categorical, Integer, Real
from test_extract import extract
from test_extract import knobs as extract_knobs
from test_train import TARGETS, stored

from strata import auto
from strata.measure.quality import firing_counts
from strata.rows.shards import Activations
from strata.rows.size import Size
from strata.run import files, params
from strata.run.door import BadInput
from strata.sae.sae import SAE
from strata.training.knobs import Train, knobs_of
from strata.training.training import train
from strata.tuning import read, write
from strata.tuning.knobs import Tune, check_taken
from strata.tuning.search import WORST, Search, dimensions
from strata.tuning.trial import attempt, judge, silent, sliced
from strata.tuning.tune import best_of, search, tune

ROOT = Path(__file__).resolve().parents[1]
SIZE = Size("language", 128_000, 640)
TRAIN: dict[str, Any] = auto.train(params.read(ROOT / "params.yaml")["train"], SIZE)
SMALL = {"latents": 64, "k": 4, "batch_size": 256, "window_rows": 4096, "auxk_latents": 8, "from_tune": ["lr"]}
SPACE = {"lr": {"min": 1.0e-3, "max": 1.0e-1, "log": True}, "k": {"min": 2, "max": 8}, "rule": ["topk", "batchtopk"]}


def knobs(**changes: Any) -> Tune:
    base = {"run": True, "sampler": "gp", "calls": 12, "starts": 5, "rows": None, "epochs": 1}
    return params.check({**base, "space": SPACE, **changes}, Tune, "params.yaml: tune")


def bowl(point: dict[str, Any]) -> dict[str, Any]:
    """A score that is 0.1 at lr 0.02, k 6, batchtopk; it stands for a training."""
    score = 0.1 + 0.05 * math.log10(point["lr"] / 0.02) ** 2 + 0.01 * (point["k"] - 6) ** 2 / 16
    score += 0.05 * (point["rule"] == "topk")
    parts = {"fvu": score, "fvu_inlier": score, "l0": float(point["k"]), "dead": 0.0}
    return {"score": score, **parts, "curve": [{"step": 1, "fvu": score}], "reason": None}


def first(**changes: Any) -> dict[str, Any]:
    return {**TRAIN, **SMALL, "lr": 0.004, "k": 4, **changes}


# --- the space ----------------------------------------------------------------------------------------------------


def test_the_default_section_is_good():
    section = params.load("tune", Tune, ROOT / "params.yaml")
    assert section.calls >= 12 and section.starts <= section.calls / 2
    assert TRAIN["from_tune"] and set(TRAIN["from_tune"]) <= set(section.space)
    names = list(section.space)
    assert [TRAIN[name] for name in names] == list(Search(section, 0, TRAIN).ask().values())  # params.yaml is inside


def test_noise_in_the_last_bits_changes_no_proposal(monkeypatch: pytest.MonkeyPatch):
    def points(noise: float) -> list[dict[str, Any]]:
        space = {"lr": SPACE["lr"], "auxk": {"min": 4.0e-3, "max": 0.25, "log": True}}
        search = Search(knobs(space=space, starts=3), 0)
        assert search.model is not None
        ask, found = search.model.ask, []
        monkeypatch.setattr(search.model, "ask", lambda: [value * (1 + noise) for value in ask() or []])
        for _ in range(8):
            found.append(search.ask())
            search.tell(0.1 + 0.05 * math.log10(found[-1]["lr"] / 0.02) ** 2 + 0.01 * found[-1]["auxk"])
        return found

    exact = points(0.0)
    assert exact == points(1e-8) == points(-1e-8) != points(1e-2)
    for point in exact:
        assert point["lr"] == float(f"{point['lr']:.3g}") and 1e-3 <= point["lr"] <= 1e-1


def test_a_knob_is_a_number_a_whole_number_or_a_choice():
    space = {**SPACE, "beta2": {"min": 0.9, "max": 0.999}, "resample_every": [None, 1], "outliers": ["keep", "skip"]}
    found = dimensions(knobs(space=space))
    assert [type(dimension) for dimension in found] == [Real, Integer, Categorical, Real, Categorical, Categorical]
    assert (found[0].prior, found[3].prior) == ("log-uniform", "uniform")
    point = Search(knobs(space=space), 1).ask()
    assert [type(value) for value in point.values()][:4] == [float, int, str, float]
    assert point["resample_every"] in (None, 1) and point["outliers"] in ("keep", "skip")
    params.check({**TRAIN, **SMALL, **point}, Train, "train")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"space": {}}, "tune.space: it is empty; name at least one knob of train, e.g. lr: "),
        ({"space": {"learning_rate": [1, 2]}}, "tune.space: 'learning_rate' is no knob of train; lr, k, latents, "),
        (
            {"space": {"encoder": [None, {"file": "e.npz", "sha256": "0"}]}},
            "tune.space: encoder cannot be tuned: it is a file",
        ),
        ({"space": {"epochs": [1, 2]}}, "tune.space: epochs cannot be tuned: tune.epochs says how long a trial is"),
        ({"space": {"rule": {"min": 1, "max": 2}}}, "tune.space: rule has a range, but is no number; give a list of"),
        ({"space": {"rule": ["topk", "bottomk"]}}, "tune.space: rule may be 'bottomk', but it should be 'topk', "),
        ({"space": {"rule": ["topk", "topk"]}}, "tune.space: rule has the choices ['topk', 'topk']; give at least two"),
        ({"space": {"lr": [0.1]}}, "tune.space: lr has the choices [0.1]; give at least two, each once"),
        ({"space": {"lr": 0.1}}, "tune.space: lr is 0.1; give {min: …, max: …}, with log: true if need be, or a list"),
        ({"space": {"k": {"min": 2.5, "max": 8}}}, "tune.space: k may be 2.5, but it should be a valid integer"),
        ({"space": {"lr": {"min": 0, "max": 0.1}}}, "tune.space: lr may be 0.0, but it should be greater than 0"),
        ({"space": {"auxk": {"min": 0, "max": 1, "log": True}}}, "auxk.min is 0, and a log range begins above 0"),
        ({"space": {"lr": {"min": 0.1, "max": 0.01}}}, "tune.space: lr.min is 0.1, which is not below its max 0.01"),
        ({"space": {"lr": {"min": "1e-4", "max": 1}}}, "tune.space: lr.min is the text '1e-4', not a number; write"),
        ({"space": {"lr": {"low": 0.1, "max": 1.0}}}, "tune.space: lr.low is not a known key; the known ones are min,"),
        ({"starts": 12}, "tune: starts is 12, so that none of 12 calls is left to learn from; lower it"),
        ({"calls": 0}, "tune.calls is 0, but it should be greater than 0"),
        ({"sampler": "tpe"}, "tune.sampler is 'tpe', but it should be 'gp', 'forest' or 'dummy'"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_one_sentence(changes: dict[str, Any], sentence: str):
    with pytest.raises(BadInput) as refusal:
        knobs(**changes)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_train_takes_only_what_is_searched():
    check_taken(["lr", "k"], knobs())
    with pytest.raises(BadInput, match=r"^params.yaml: train.from_tune names 'auxk', which tune.space does not have; "):
        check_taken(["lr", "auxk"], knobs())
    with pytest.raises(BadInput, match=r"from_tune names 'kk', which is no knob of train; did you mean k\?$"):
        params.check({**TRAIN, "from_tune": ["kk"]}, Train, "params.yaml: train")


# --- the search ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["gp", "forest", "dummy"])
def test_same_seed_same_trials_and_they_go_on_anywhere(tmp_path: Path, sampler: str):
    plan = knobs(sampler=sampler, calls=9, starts=3)
    whole, _ = search(plan, 7, first(), bowl)
    again, _ = search(plan, 7, first(), bowl)
    other, _ = search(plan, 8, first(), bowl)
    assert json.dumps(whole) == json.dumps(again) != json.dumps(other)
    assert [trial["kind"] for trial in whole] == ["params"] + (
        ["random"] * 8 if sampler == "dummy" else ["random"] * 3 + ["model"] * 5
    )
    assert whole[0]["knobs"] == {"lr": 0.004, "k": 4, "rule": "batchtopk"}

    made = 0

    def dies(point: dict[str, Any]) -> dict[str, Any]:
        nonlocal made
        made += 1
        if made % 4 == 0:
            raise KeyboardInterrupt
        return bowl(point)

    while True:
        try:
            pieces, _ = search(plan, 7, first(), dies, work=tmp_path)
        except KeyboardInterrupt:
            continue
        break
    assert json.dumps(pieces) == json.dumps(whole)
    assert made == 9 + 2  # each of the two interruptions lost the trial in hand alone
    longer, _ = search(knobs(sampler=sampler, calls=10, starts=3), 7, first(), bowl, work=tmp_path)
    assert json.dumps(longer[:9]) == json.dumps(whole)  # more calls go on where fewer ended


def test_the_models_find_the_bottom_of_a_bowl():
    scores = {sampler: [] for sampler in ("gp", "dummy")}
    for sampler, found in scores.items():
        for seed in range(3):
            trials, _ = search(knobs(sampler=sampler, calls=16), seed, first(lr=0.001), bowl)
            found.append(min(trial["score"] for trial in trials))
    assert np.mean(scores["gp"]) < 0.102 < np.mean(scores["dummy"])


def test_a_failure_is_the_worst_score_and_not_the_end():
    def half(point: dict[str, Any]) -> dict[str, Any]:
        if point["rule"] == "topk":
            return {**bowl(point), "score": None, "reason": "no"}
        return {**bowl(point), "score": 70.0} if point["k"] == 8 else bowl(point)

    trials, found = search(knobs(), 0, first(), half)
    assert {trial["score"] for trial in trials} >= {None}
    told = [math.exp(value) for _, value in found.told]
    for trial, value in zip(trials, told, strict=True):
        expected = WORST if trial["score"] is None else min(trial["score"], WORST)
        assert value == pytest.approx(expected)
    best = best_of(trials)
    assert best and best["knobs"]["rule"] == "batchtopk"


def test_a_point_that_comes_again_is_not_trained_again():
    asked = []

    def attempt(point: dict[str, Any]) -> dict[str, Any]:
        asked.append(point)
        return bowl({"lr": 0.01, "k": 4, **point})

    plan = knobs(sampler="dummy", calls=12, starts=1, space={"rule": ["topk", "batchtopk"]})
    trials, _ = search(plan, 0, first(), attempt)
    assert len(trials) == 12 and len(asked) == 2


def test_params_outside_the_space_are_no_trial():
    trials, _ = search(knobs(calls=6, starts=2), 0, first(k=40), bowl)
    assert [trial["kind"] for trial in trials] == ["random"] * 2 + ["model"] * 4


# --- a trial ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> Activations:
    """4 of 64 unit atoms a row."""
    random = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(64, 32, generator=random), dim=1)
    chosen = torch.rand(6000, 64, generator=random).topk(4, dim=1).indices
    codes = torch.zeros(6000, 64).scatter(1, chosen, 1 + torch.rand(6000, 4, generator=random))
    return stored(codes @ atoms + 0.3, {"train": [0, 5000], "validation": [5000, 5500], "test": [5500, 6000]})


def test_a_slice_has_fewer_training_rows_and_the_same_validation(rows: Activations):
    few = sliced(rows, 1000)
    assert few.split("train") == (0, 1000) and few.split("validation") == rows.split("validation")
    assert (few.scale, few.rows) == (rows.scale, rows.rows) and rows.split("train") == (0, 5000)
    assert sliced(rows, None).meta == sliced(rows, 10**9).meta == rows.meta


def test_the_score_by_hand(rows: Activations):
    eye = torch.eye(32)
    zero = torch.zeros(32)
    identity = SAE(torch.cat([eye, -eye]), torch.zeros(64), torch.cat([eye, -eye]), zero, threshold=torch.zeros(64))
    found = judge(identity, rows, TARGETS)  # exact, with about 32 active latents where 8 are allowed
    assert found["fvu"] == pytest.approx(0, abs=1e-9)
    assert found["l0"] == pytest.approx(32, abs=0.1) and found["dead"] == 0
    assert found["score"] == pytest.approx((float(found["l0"] or 0) - 8) / 8)
    nothing = SAE(
        torch.cat([eye, -eye]), torch.full((64,), -1e9), torch.cat([eye, -eye]), zero, threshold=torch.zeros(64)
    )
    found = judge(nothing, rows, TARGETS)
    assert (found["l0"], found["dead"]) == (0, 1)
    assert found["score"] == pytest.approx(float(found["fvu"] or 0) + (2 - 0) / 2 + (1 - 0.1) / 0.1)


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu"])
def test_the_dead_are_those_that_never_fire(rows: Activations, rule: str):
    plan = params.check({**first(latents=512, rule=rule), "epochs": 1}, Train, "train")
    sae = train(rows, plan, TARGETS, 0).best
    sae = replace(sae, b_enc=sae.b_enc.clone().index_fill_(0, torch.arange(0, 512, 5), -1e9))
    counts = firing_counts(sae, rows.blocks(0, 5500, 100))
    found = silent(sae, rows.blocks(0, 5500, 100))
    assert found.tolist() == (counts == 0).nonzero().flatten().tolist() and 103 <= len(found) < 512


def test_trials_that_fail_say_why(rows: Activations):
    base = first()
    assert attempt(rows, base, {"lr": 0.01}, knobs(), TARGETS, 0)["score"] < 1
    assert "diverged at step" in attempt(rows, base, {"lr": 1e4}, knobs(), TARGETS, 0)["reason"]
    refused = attempt(rows, base, {"latents": 16, "k": 20}, knobs(), TARGETS, 0)
    assert refused["score"] is None and refused["curve"] == []
    assert refused["reason"] == "train: k is 20, more than the 16 latents of the dictionary; lower k"


def test_a_score_that_is_not_finite_is_a_failure(rows: Activations, monkeypatch: pytest.MonkeyPatch):
    judged = {"score": math.inf, "fvu": math.inf, "fvu_inlier": math.inf, "l0": 1.0, "dead": 0.0}
    monkeypatch.setattr("strata.tuning.trial.judge", lambda sae, activations, targets: judged)
    failed = attempt(rows, first(), {}, knobs(), TARGETS, 0)
    assert failed["score"] is None and failed["reason"] == "training diverged: the error on the validation rows is inf"


def test_a_range_without_the_value_of_params_yaml_begins_elsewhere():
    """resample_every is null in train, which no range holds; a list of choices may."""
    point = {"resample_every": None}
    ranged = Search(knobs(space={"resample_every": {"min": 1, "max": 4}}), 0, point)
    assert ranged.first is None and ranged.ask()["resample_every"] in (1, 2, 3, 4)
    listed = Search(knobs(space={"resample_every": [None, 1]}), 0, point)
    assert listed.ask() == {"resample_every": None}
    listed.tell(0.0)  # the logarithm of a score has a floor
    assert math.isfinite(listed.told[0][1])


def test_tuning_for_real_is_written_and_repeats_bit_for_bit(rows: Activations, tmp_path: Path):
    space = {"lr": {"min": 1.0e-3, "max": 1.0e4, "log": True}, "latents": [2, 64], "rule": ["topk", "relu"]}
    plan = knobs(calls=8, starts=4, rows=2048, space=space)
    for name in ("one", "two"):
        found, how = tune(rows, plan, first(), TARGETS, 0)
        write.write(tmp_path / name, found, how)
    files_of = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")}
    assert files_of["one"] == files_of["two"]
    assert set(files_of["one"]) == {"best.yaml", "trials.csv", "trials.json", "convergence.png", "dependence.png"}

    trials = read.read_trials(tmp_path / "one")
    assert trials and trials["rows"] == {"train": 2048, "validation": 500}
    with (tmp_path / "one" / "trials.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["trial"] for line in lines] == [str(number) for number in range(8)]
    failed = [line for line in lines if not line["score"]]
    assert failed and all(line["reason"] for line in failed)
    assert {bool(trial["reason"]) for trial in trials["trials"]} == {True, False}
    best = trials["trials"][trials["best"]]
    assert float(lines[-1]["best"]) == best["score"] == min(float(line["score"]) for line in lines if line["score"])
    assert read.taken(tmp_path / "one" / "best.yaml", ["lr", "rule"]) == {n: best["knobs"][n] for n in ("lr", "rule")}
    with pytest.raises(BadInput, match=r"from_tune names 'k', which tune.space does not have; .*best.yaml has lr, l"):
        read.taken(tmp_path / "one" / "best.yaml", ["k"])
    assert read.numbers(trials)["failed"] == len(failed)
    assert [row["step"] for row in read.curve(trials)] == [int(line["trial"]) for line in lines if line["score"]]


def test_all_trials_failing_is_told_and_so_is_no_validation(rows: Activations):
    hopeless = knobs(calls=2, starts=1, space={"lr": {"min": 1.0e4, "max": 1.0e5}})
    with pytest.raises(BadInput, match=r"^all 2 trials of tune failed; the first: training diverged"):
        tune(rows, hopeless, first(), TARGETS, 0)
    without = stored(rows.read(0, 6000).float(), {"train": [0, 5000], "validation": [5000, 5000], "test": [5000, 6000]})
    with pytest.raises(BadInput, match=r"^there are no validation rows to judge trials by; raise fetch.corpus.valid"):
        tune(without, knobs(), first(), TARGETS, 0)


# --- what train takes ---------------------------------------------------------------------------------------------


def test_by_layer_wins_over_tune_and_tune_over_train():
    tuned = {"lr": 0.02, "auxk": 0.1}
    found = knobs_of(TRAIN, tuned, {"lr": 0.03}, 9, SIZE)
    assert (found.lr, found.auxk, found.beta1) == (0.03, 0.1, TRAIN["beta1"])
    with pytest.raises(BadInput, match=r"^params.yaml: train with tune's latents and by_layer.9: k is 9, more than"):
        knobs_of(TRAIN, {"latents": 8}, {"k": 9}, 9, SIZE)
    with pytest.raises(BadInput, match=r"^params.yaml: train with tune's latents: k is 80, more than the 8 latents"):
        knobs_of({**TRAIN, "k": 80}, {"latents": 8}, {}, 9, SIZE)


def test_skipped_leaves_train_to_itself(tmp_path: Path):
    write.skip(tmp_path)
    assert read.taken(tmp_path / "best.yaml", ["lr", "anything"]) == {}
    assert read.read_trials(tmp_path) is None
    with pytest.raises(BadInput, match=r"none.yaml is missing; run the stage that writes it"):
        read.taken(tmp_path / "none.yaml", ["lr"])


# --- the stage, killed --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_after_some_trials(tmp_path: Path):
    """kill -9 in the middle of trials, twice: the end has the same bytes as without."""
    lm = save_tiny_lm(tmp_path / "lm", "gpt2")
    extract(tmp_path / "activations", lm, [1], extract_knobs())
    content = params.read(ROOT / "params.yaml")
    content["train"] |= {**SMALL, "batch_size": 64}
    content["tune"] |= {"calls": 8, "starts": 3, "epochs": 8}
    content["machine"] |= {"threads": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "STRATA_TRACKING": "off"}

    def start(target: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "src.tune", "activations/1", target]
        with (tmp_path / "said").open("wb") as said:
            return subprocess.Popen(words, cwd=tmp_path, env=env, stderr=said)

    def done() -> int:
        return len(list((tmp_path / ".scratch").glob("tune-*/0*.json")))

    assert start("whole").wait() == 0, (tmp_path / "said").read_text()
    for trials in (2, 5):
        process = start("pieces")
        while done() < trials:
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "pieces").exists() and done() in (5, 6)
    assert start("pieces").wait() == 0, (tmp_path / "said").read_text()
    hashes = [{file.name: files.sha256(file) for file in (tmp_path / name).iterdir()} for name in ("whole", "pieces")]
    assert hashes[0] == hashes[1] and "best.yaml" in hashes[0]
    assert not list((tmp_path / ".scratch").glob("tune-*"))
