"""Tracking on a real SQLite store: complete, comparable, repeatable, and never in the way."""

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from src import ui
from stages.track import archived
from strata.experiments import tracking
from strata.experiments.experiment import MOST, Experiment, baseline, experiment_name, flat, thin
from strata.run.door import BadInput

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [3, 9]


def experiment(k: int = 64, folder: Path | None = None) -> Experiment:
    """A small experiment whose numbers depend on ``k``."""
    lines = [
        {"layer": layer, "metric": metric, "value": value, "min": low, "max": high, "pass": good}
        for layer in LAYERS
        for metric, value, low, high, good in (
            ("mse", 0.32 / k, None, 0.01, True),
            ("l0", float(k), 50, 100, k >= 50),
            ("delta_ce", None, None, 0.5, None),
        )
    ]
    artifacts = []
    if folder:
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        (folder / "report.html").write_text("<p>report</p>")
        (folder / "plots" / "fvu.png").write_text("picture")
        artifacts = [folder / "report.html", folder / "plots"]
    return Experiment(
        params={
            "seed": 0,
            "layers": LAYERS,
            "by_layer": {9: {"lr": 0.001}},
            "train": {"k": k, "lr": 0.003, "rule": "batchtopk"},
            "fetch": {"lm": {"source": "x"}, "sources": [{"source": "y"}]},
        },
        summary={"targets.passed": 4, "targets.failed": 0} | {f"train.{layer}.mse": 0.32 / k for layer in LAYERS},
        scorecard={"targets": lines, "verdict": f"{k // 16} of 4 targets"},
        histories={f"train@{layer}": history() for layer in LAYERS},
        artifacts=artifacts,
    )


def history(points: int = 30) -> list[dict[str, float]]:
    return [
        {"step": step, "tokens": step * 10, "loss": 1 / (1 + step), "fvu": 0.5 / (1 + step)} for step in range(points)
    ]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has set up, to copy: the set-up takes seconds."""
    folder = tmp_path_factory.mktemp("warm")
    tracking.Store(f"sqlite:///{folder / 'mlflow.db'}")
    return folder / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, warm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The main checkout, with a database but no experiment in it; the stage runs in another folder."""
    for name in ("MLFLOW_TRACKING_URI", "STRATA_TRACKING", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking, "BRIEF", 0)  # all that is short here is streamed
    (tmp_path / "main").mkdir()
    (tmp_path / "workspace").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    monkeypatch.chdir(tmp_path / "workspace")
    shutil.copy(warm, tmp_path / "main" / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "main" / "mlflow.db")) as database, database:
        artifacts = (tmp_path / "main" / "mlartifacts").as_uri()
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'strata'", (artifacts,))
    return tmp_path / "main"


def runs(**tags: str) -> list[Any]:
    return tracking.Store().search(**tags)


def curve(run: Any, name: str) -> dict[int, float]:
    points = tracking.Store().client.get_metric_history(run.info.run_id, name)
    assert len({point.step for point in points}) == len(points), "a point is there twice"
    return {point.step: point.value for point in points}


def test_experiments_are_rows_with_the_same_columns(root: Path, monkeypatch: pytest.MonkeyPatch):
    began = time.time()
    for name, k in (("one", 64), ("two", 32), ("cached-copy", 64)):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        monkeypatch.setenv("DVC_EXP_BASELINE_REV", "a" * 40)
        for _ in range(2):  # the second time adds nothing
            tracking.track(experiment(k, root / "reports"))
    rows = runs(role="pipeline")
    assert sorted(row.info.run_name for row in rows) == ["cached-copy", "one", "two"]
    assert len({frozenset(row.data.metrics) for row in rows}) == 1
    assert len(runs(role="stage")) == 6
    two = next(row for row in rows if row.info.run_name == "two")
    assert {name: value for name, value in two.data.metrics.items() if "/l0/" in name} == {
        f"target/l0/{layer}/pass": 0 for layer in LAYERS
    }
    nine = next(
        run for run in runs(**{"dvc.stage": "train@9"}) if run.data.tags["mlflow.parentRunId"] == two.info.run_id
    )
    bounds = {name: value for name, value in nine.data.metrics.items() if name.startswith("target/l0/")}
    assert bounds == {"target/l0/min": 50, "target/l0/max": 100, "target/l0/pass": 0}
    assert two.data.metrics["train.9.mse"] == 0.01
    assert nine.data.metrics["target/delta_ce/max"] == 0.5
    assert "target/delta_ce/9/pass" not in two.data.metrics, "null neither passes nor fails"
    assert two.data.params["train.k"] == "32" and two.data.params["train.3.k"] == two.data.params["train.9.k"] == "32"
    assert two.data.tags["dvc.baseline"] == two.data.tags["mlflow.source.git.commit"] == "a" * 40
    assert two.data.tags["dvc.exp_name"] == "two"
    assert two.info.start_time > int(1000 * began), "what came out of the cache lasted no time"
    assert two.info.artifact_uri.startswith((root / "mlartifacts").as_uri())
    shown = tracking.Store().client.list_artifacts(two.info.run_id)
    assert [item.path for item in shown] == ["plots", "report.html"]
    assert not list(Path.cwd().iterdir()), "nothing is left in the workspace of a queued experiment"


def test_nested_runs_hold_params_curves_and_hashes(root: Path):
    lock = {
        "fetch": {"outs": [{"path": "data/lm", "md5": "f00.dir"}]},
        "train@9": {"outs": [{"path": "data/sae/9", "md5": "abc.dir"}]},
        "train@12": {"outs": [{"path": "data/sae/12", "md5": "a removed layer stays in dvc.lock"}]},
    }
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": lock}), encoding="utf-8")
    tracking.track(experiment())
    (parent,) = runs(role="pipeline")
    assert parent.info.run_name == experiment_name()
    assert {tag for tag in parent.data.tags if tag.startswith("dvc.out")} == {"dvc.out.data/lm"}
    (nine,) = runs(**{"dvc.stage": "train@9"})
    assert nine.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert nine.data.tags["dvc.out.data/sae/9"] == "abc.dir"
    assert nine.data.params == {"k": "64", "lr": "0.001", "rule": "batchtopk", "layer": "9", "seed": "0"}
    assert curve(nine, "fvu") == {int(row["step"]): row["fvu"] for row in history()}
    assert nine.data.metrics["final/mse"] == 0.005
    assert nine.info.status == "FINISHED"


def test_trials_are_nested_in_the_run_of_tune_and_train_shows_what_it_took(root: Path):
    parts = {"score": 0.1, "fvu": 0.09, "fvu_inlier": 0.14, "l0": 80.0, "dead": 0.0}
    trials = [
        {"trial": 0, "kind": "params", "knobs": {"lr": 0.003}, "curve": history(5), "reason": None, **parts},
        {"trial": 1, "kind": "random", "knobs": {"lr": 9.0}, "curve": [], "reason": "no", **dict.fromkeys(parts)},
    ]
    given = experiment()
    given = replace(
        given,
        params=given.params | {"tune": {"calls": 2, "space": {"lr": {"min": 0.001}}}},
        summary=given.summary | {"tune.score": 0.1, "tune.best.lr": 0.003},
        histories=given.histories | {"tune": [{"step": 0, "score": 0.1, "best": 0.1}]},
        tuned={"lr": 0.005},
        trials=trials,
    )
    with tracking.live("tune", {"calls": 2}) as log:
        log(0, {"score": 0.1})
    for _ in range(2):
        tracking.track(given)
    (stage,) = runs(**{"dvc.stage": "tune", "role": "stage"})
    assert stage.data.params == {"calls": "2", "space.lr.min": "0.001", "seed": "0"}
    assert (stage.data.metrics["final/score"], stage.data.metrics["final/best.lr"]) == (0.1, 0.003)
    assert curve(stage, "score") == {0: 0.1}
    second, first = runs(role="trial")
    assert {run.data.tags["mlflow.parentRunId"] for run in (first, second)} == {stage.info.run_id}
    assert (first.info.run_name, first.info.status) == ("trial 0", "FINISHED")
    assert first.data.params == {"lr": "0.003"} and first.data.metrics["final/dead"] == 0
    assert curve(first, "fvu") == {int(row["step"]): row["fvu"] for row in history(5)}
    assert (second.info.status, second.data.tags["reason"]) == ("FAILED", "no")
    lrs = {run.info.run_name: run.data.params["lr"] for run in runs(role="stage") if "train" in run.info.run_name}
    assert lrs == {"train@3": "0.005", "train@9": "0.001"}  # by_layer wins


def test_what_streamed_live_is_adopted(root: Path):
    with tracking.live("train@3", {"k": 64, "lr": 0.003}) as log:
        for row in history()[:20:2]:
            log(int(row["step"]), {"loss": row["loss"]})
    (streamed,) = runs(role="stage")
    assert len(curve(streamed, "loss")) == 10
    assert "mlflow.parentRunId" not in streamed.data.tags
    tracking.track(experiment())
    (three,), (parent,) = runs(**{"dvc.stage": "train@3"}), runs(role="pipeline")
    assert three.info.run_id == streamed.info.run_id
    assert three.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert curve(parent, "curve/fvu/3") == {int(row["step"]): row["fvu"] for row in history()}
    assert parent.info.start_time == three.info.start_time < parent.info.end_time, "as long as what really ran"
    assert three.data.params["rule"] == "batchtopk"
    for name in ("loss", "fvu"):
        assert curve(three, name) == {int(row["step"]): row[name] for row in history()}


def test_the_report_stands_alone_and_its_archive_has_all_pages(tmp_path: Path):
    page, latents, folder = tmp_path / "report.html", tmp_path / "latents", tmp_path / "out"
    (latents / "9").mkdir(parents=True)
    folder.mkdir()
    (latents / "9" / "42.html").write_text("<h1>Latent 42</h1>")
    page.write_text(
        '<body class="a"><h1>R</h1><a href="#b">B</a> <a class="n" href="latents/9/42.html"><b>42</b></a></body>'
    )
    alone, whole = archived(page, latents, folder)
    shown = alone.read_text()
    assert "latents/" not in shown and '<a href="#b">B</a> <b>42</b></body>' in shown
    assert shown.startswith('<body class="a"><p') and "report.zip" in shown
    with ZipFile(whole) as archive:
        assert archive.read("report.html").decode() == page.read_text()
        assert archive.read("latents/9/42.html").decode() == "<h1>Latent 42</h1>"


def test_a_brief_stage_is_left_to_track(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "BRIEF", 60)
    with tracking.live("train@3", {"k": 64, "lr": 0.003}) as log:
        log(0, {"loss": 1.0})
    assert runs(role="stage") == []
    tracking.track(experiment())
    assert curve(runs(**{"dvc.stage": "train@3"})[0], "loss") == {int(row["step"]): row["loss"] for row in history()}


def test_a_live_run_of_other_params_or_another_experiment_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch):
    with tracking.live("train@3", {"k": 32}) as log:
        log(0, {"loss": 1.0})
    monkeypatch.setenv("DVC_EXP_NAME", "other")
    with tracking.live("train@9", {"k": 64}) as log:
        log(0, {"loss": 1.0})
    monkeypatch.delenv("DVC_EXP_NAME")
    tracking.track(experiment())
    assert len(runs(role="stage")) == 4
    assert len(runs(role="stage", **{"mlflow.parentRunId": runs(role="pipeline")[0].info.run_id})) == 2


def test_a_killed_stage_goes_on_in_its_run_and_a_forced_one_leaves_none(root: Path):
    killed = tracking.Store().open_live("train@3", {"k": "64"})
    with tracking.live("train@3", {"k": 64}) as log:
        log(5, {"loss": 1.0})
    assert [(run.info.run_id, run.info.status) for run in runs(role="stage")] == [(killed, "FINISHED")]
    tracking.track(experiment())
    with tracking.live("train@3", {"k": 64}) as log:
        log(5, {"loss": 1.0})
    tracking.track(experiment())
    assert len(runs(role="stage")) == 2

    changed = tracking.Store().open_live("train@3", {"k": "16"})
    tracking.Store().open_live("train@3", {"k": "8"})
    assert {run.info.status for run in runs(role="stage") if run.info.run_id == changed} == {"KILLED"}


def test_a_stage_that_fails_says_so(root: Path):
    with pytest.raises(ZeroDivisionError), tracking.live("train@3", {}) as log:
        log(0, {"loss": float("nan")})
        raise ZeroDivisionError
    assert runs(role="stage")[0].info.status == "FAILED"


def test_a_track_that_was_killed_is_written_anew(root: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking.Store, "_write_stage", killed)
        tracking.track(experiment())
    assert [run.info.status for run in runs(role="pipeline")] == ["RUNNING"]
    tracking.track(experiment())
    assert [run.info.status for run in runs(role="pipeline")] == ["FINISHED"]
    assert len(runs(role="stage")) == 2


def write_cold(root: str, name: str) -> None:
    os.environ.update(DVC_ROOT=root, DVC_EXP_NAME=name)
    tracking.track(experiment())


@pytest.mark.slow
def test_four_cold_writers_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_cold, args=(str(tmp_path), f"exp-{i}")) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert sorted(run.info.run_name for run in runs(role="pipeline")) == [f"exp-{i}" for i in range(4)]
    assert len(runs(role="stage")) == 8
    assert all(run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri()) for run in runs(role="stage"))


DOWN = {
    "a folder in its place": "sqlite:///folder",
    "not a database": "sqlite:///broken.db",
    "a file where a folder should be": "sqlite:///broken.db/mlflow.db",
    "no such store": "gopher://somewhere",
    "nothing to keep": "sqlite:///:memory:",
    "no address": "sqlite:nowhere",
    "nobody answers": "http://127.0.0.1:9",
}


@pytest.mark.parametrize("uri", DOWN.values(), ids=DOWN)
def test_a_store_that_is_down_costs_one_line(
    root: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (root / "folder").mkdir()
    (root / "broken.db").write_text("this is no database, but it is long enough to be taken for one" * 20)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    start = time.monotonic()
    tracking.track(experiment())
    said = capsys.readouterr().err
    assert said.startswith("tracking: this experiment is not in MLflow (") and said.count("\n") == 1
    with tracking.live("train@3", {"k": 64}) as log:
        for step in range(3):
            log(step, {"loss": 1.0})
    said = capsys.readouterr().err
    assert said.startswith("tracking: train@3 is not streamed to MLflow (") and said.count("\n") == 1
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("place", ["100%41", "a#b?c=d e&f", "%25 ü"])
def test_a_checkout_of_any_name(tmp_path: Path, warm: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    root = tmp_path / "within" / place
    root.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(warm, root / "mlflow.db")
    (root / "report.html").write_text("shown")
    tracking.track(replace(experiment(), artifacts=[root / "report.html"]))
    assert capsys.readouterr().err == ""
    (parent,) = runs(role="pipeline")
    assert [item.path for item in tracking.Store().client.list_artifacts(parent.info.run_id)] == ["report.html"]
    assert [file.read_text() for file in (root / "mlartifacts").rglob("report.html")] == ["shown"]
    assert [folder.name for folder in (tmp_path / "within").iterdir()] == [place], "a folder of another name was made"
    assert tracking.database(tracking.address()) == root / "mlflow.db"


@pytest.mark.parametrize("moved", [False, True], ids=["copied", "moved"])
def test_a_checkout_that_was_copied_or_moved_keeps_its_own_artifacts(
    root: Path, tmp_path: Path, moved: bool, monkeypatch: pytest.MonkeyPatch
):
    (root / "report.html").write_text("first")
    tracking.track(replace(experiment(), artifacts=[root / "report.html"]))
    other = tmp_path / "mlartifacts" / "other"  # a folder of that name above it, too
    other.parent.mkdir()
    if moved:
        root.rename(other)
    else:
        shutil.copytree(root, other)
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    monkeypatch.setenv("DVC_ROOT", str(other))
    (other / "report.html").write_text("second")
    tracking.track(replace(experiment(32), artifacts=[other / "report.html"]))
    shown = [file.read_text() for file in (other / "mlartifacts").rglob("report.html")]
    assert sorted(shown) == ["first", "second"]
    client = tracking.Store().client
    for run in runs(role="pipeline"):
        assert run.info.artifact_uri.startswith((other / "mlartifacts").as_uri() + "/")
        assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["report.html"]
    if moved:
        assert not root.exists()
    else:
        assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_artifacts_that_somebody_put_elsewhere_stay_there(root: Path):
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        database.execute("UPDATE experiments SET artifact_location = 's3://mine/mlartifacts' WHERE name = 'strata'")
    store = tracking.Store()
    assert store.client.get_experiment(store.place).artifact_location == "s3://mine/mlartifacts"


@pytest.mark.parametrize("name", ["mlflow.db", "."], ids=["a file", "a folder"])
def test_a_store_that_is_read_only_costs_one_line(root: Path, name: str, capsys: pytest.CaptureFixture[str]):
    before = (root / "mlflow.db").read_bytes()
    (root / ".mlflow.lock").touch()
    if os.geteuid():
        (root / name).chmod(0o555)
        free = [["chmod", "u+w", str(root / name)]]
    elif subprocess.run(["chattr", "+i", str(root / name)], capture_output=True).returncode:
        pytest.skip("root can write everywhere, and this file system knows no chattr +i")
    else:
        free = [["chattr", "-i", str(root / name)]]
    try:
        tracking.track(experiment())
    finally:
        subprocess.run(free[0], check=True)
    said = capsys.readouterr().err
    assert said.startswith("tracking: this experiment is not in MLflow (") and said.count("\n") == 1
    assert (root / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:pw-of-mine@127.0.0.1:9",
        "http://me:pw%2Dof%2Dmine@127.0.0.1:9/mlflow",
        "https://pw-of-mine@127.0.0.1:9",
        "postgresql://me:pw-of-mine@127.0.0.1:9/mlflow",
        "gopher://me:pw-of-mine@somewhere",
    ],
)
def test_a_password_is_never_shown(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capfd: Any):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # ten tries take MLflow 100 s
    tracking.track(experiment())
    with pytest.raises(BadInput) as refusal:
        tracking.pipelines()
    said = capfd.readouterr()
    for text in (said.err + said.out, str(refusal.value)):
        assert "not" in text and "pw-of-mine" not in text and "pw%2Dof" not in text


def test_what_is_refused_before_it_begins_leaves_no_run(root: Path):
    with pytest.raises(BadInput), tracking.live("tune", {}):
        raise BadInput("tune.space has a typo")
    assert runs(role="stage") == []
    with pytest.raises(BadInput), tracking.live("train@3", {}) as log:  # refused after it had something to show
        log(0, {"loss": 1.0})
        raise BadInput("the loss is not finite")
    assert [run.info.status for run in runs(role="stage")] == ["FAILED"]


def test_what_is_refused_late_and_has_shown_nothing_leaves_no_run(root: Path):
    with pytest.raises(BadInput), tracking.live("tune", {}):
        while not runs(role="stage"):  # it is open by now
            time.sleep(0.05)
        raise BadInput("tune.space has a typo")
    assert runs(role="stage") == []


def test_the_page_is_opened_on_the_runs(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")  # so that it is as before, afterwards
    tracking.track(experiment())
    ui.main("5055")
    number = tracking.Store().place
    runs_page = f"http://127.0.0.1:5055/#/experiments/{number}/runs?workflowType=machine_learning"
    assert f"{runs_page}&viewStateShareKey={tracking.VIEW}" in capsys.readouterr().out
    view = tracking.Store().client.get_experiment(number).tags[f"mlflow.sharedViewState.{tracking.VIEW}"]
    shown = ["tags.`verdict`", "metrics.`targets.passed`"]
    assert json.loads(view) == {"selectedColumns": shown}, (
        "as the UI's own button Share writes it; these SAEs have no fvu"
    )
    assert started[0][1:] == ["-m", "mlflow", "ui", "--port", "5055", "--workers", "1"]
    assert tracking.Store(os.environ["MLFLOW_BACKEND_STORE_URI"]).place == number
    with pytest.raises(BadInput, match="the port is 'x'"):
        ui.main("x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://somewhere")
    with pytest.raises(BadInput, match="MLflow cannot be opened"):
        ui.main("5055")


def test_a_store_that_hangs_is_left_behind(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    release = threading.Event()

    def hang() -> None:
        release.wait(20)
        raise TimeoutError

    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    monkeypatch.setattr(tracking, "Store", hang)
    with tracking.live("train@3", {}) as log:
        log(0, {"loss": 1.0})
    assert "the live curves of train@3 are incomplete (no answer within" in capsys.readouterr().err
    release.set()
    for thread in threading.enumerate():
        if thread.name.endswith("(_stream)"):
            thread.join()


def test_switched_off_nothing_is_imported(tmp_path: Path):
    program = (
        "import sys, tests.test_tracking as t; from strata.experiments import tracking\n"
        "tracking.track(t.experiment())\n"
        "with tracking.live('train@3', {}) as log: log(0, {'loss': 1.0})\n"
        "assert 'mlflow' not in sys.modules and 'sqlalchemy' not in sys.modules"
    )
    environment = {**os.environ, "STRATA_TRACKING": "off", "DVC_ROOT": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=Path(__file__).parents[1])
    assert not list(tmp_path.iterdir())


def test_a_relative_address_counts_from_the_main_checkout(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    tracking.track(experiment())
    assert len(runs(role="pipeline")) == 1
    assert not list(Path.cwd().iterdir())


def test_a_curve_is_thinned_and_keeps_its_ends():
    rows = [{"step": float(step)} for step in range(1234)]
    few = thin(rows, 500)
    assert len(few) == 500 and few[0] == rows[0] and few[-1] == rows[-1]
    assert thin(rows[:500], 500) == rows[:500]


def test_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789")
    assert experiment_name() == "repro-0123456"
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-name")
    assert experiment_name() == "puffy-name"
    monkeypatch.delenv("DVC_EXP_BASELINE_REV")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert baseline() is None


def test_flat():
    nested = {"a": {"b": 1, "c": {"d": None}}, "list": [{"x": 1}], "empty": {}, "text": "t", "lr": 1e-4}
    assert flat(nested) == {
        "a.b": "1", "a.c.d": "null", "list": '[{"x": 1}]', "empty": "{}", "text": "t", "lr": "0.0001",
    }  # fmt: skip


def test_the_content_key_sees_every_param_and_number():
    assert experiment().content_key() == experiment().content_key()
    assert experiment().content_key() != experiment(63).content_key()
    other = experiment()
    other.params["fetch"]["lm"]["source"] = "z"
    assert other.content_key() != experiment().content_key()


def test_twins_stand_beside_the_saes_and_the_verdict_comes_first(root: Path):
    """A run of each twin has the columns of the SAE's run; the experiment's run says in words how it did."""
    one = experiment()
    margin = {"layer": 9, "metric": "mse", "twin": "frozen_decoder", "by": 0.001, "sae": 0.005, "value": 0.007}
    margin |= {"margin": 0.002, "low": 0.0015, "high": 0.0025, "pass": True}
    twins = {"controls.9.frozen_decoder.mse": 0.007, "controls.9.frozen_decoder.margin.mse": 0.002}
    one = replace(
        one,
        params={**one.params, "controls": {"run": True, "twins": ["frozen_decoder"]}},
        summary={**one.summary, **twins, "controls.passing": 0},
        scorecard={**one.scorecard, "margins": [margin]},
        histories={**one.histories, **{f"controls@{layer}": [] for layer in LAYERS}},
    )
    for _ in range(2):
        tracking.track(one)
    (twin,) = runs(role="twin")
    sae = next(run for run in runs(role="stage") if run.info.run_name == "train@9")
    assert twin.info.run_name == "train@9 frozen_decoder"
    assert twin.data.tags["mlflow.parentRunId"] == sae.data.tags["mlflow.parentRunId"]
    assert twin.data.metrics == {"final/mse": 0.007, "final/margin.mse": 0.002}
    assert "final/mse" in sae.data.metrics and twin.data.params == {**sae.data.params, "twin": "frozen_decoder"}

    (row,) = runs(role="pipeline")
    assert row.data.tags["verdict"] == row.data.tags["mlflow.note.content"] == "4 of 4 targets"
    assert {name: value for name, value in row.data.metrics.items() if name.startswith("margin/")} == {
        f"margin/mse/9/frozen_decoder/{part}": value for part, value in (("margin", 0.002), ("pass", 1))
    }


def test_the_row_of_an_experiment_is_short_however_many_layers_there_are():
    layers, metrics = range(26), ("fvu_inlier", "fvu", "l0", "dead", "delta_ce", "mse", "cosine", "kl", "ce_recovered")
    numbers = {f"train.{layer}.{metric}": 0.5 for layer in layers for metric in metrics}
    numbers |= {f"interpret.{layer}.quadrants.{name}": 1.0 for layer in layers for name in ("a", "b")}
    row = replace(experiment(), summary={"targets.passed": 3.0, **numbers}).row()
    assert len(row) == MOST - len(LAYERS) and row["targets.passed"] == 3, "a curve for each layer takes its place"
    assert all(f"train.{layer}.fvu_inlier" in row for layer in layers), "what matters most comes first"
    assert not [name for name in row if "quadrants" in name]

    default = json.loads((ROOT / "reports" / "summary.json").read_text(encoding="utf-8"))
    of_default = replace(experiment(), summary=default).row()
    assert 60 < len(of_default) < MOST and {"train.9.delta_ce", "evaluate.9.tasks.normal.mean.sae.auc.1"} <= set(
        of_default
    )
