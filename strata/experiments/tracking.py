"""MLflow: the only module that talks to it. It observes, and cannot change an output.

The store is ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` of the main checkout with its artifacts beside it; they stay
beside it when the checkout is moved or copied. Whatever goes wrong with it is said in one line on stderr, without the
password that its address may hold, and the stage goes on. ``STRATA_TRACKING=off`` in the environment
switches tracking off.

``track`` writes an experiment's one comparable row from its files, so that it is complete even when every stage came
out of DVC's cache; a nested run a stage and layer holds the curves. ``live`` streams a long stage's curves while it
runs, and ``track`` adopts what it left instead of writing a second run.
"""

import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from filelock import FileLock

from strata.experiments.experiment import Experiment, baseline, checkout, experiment_name, flat, thin
from strata.run.door import BadInput
from strata.run.resume import main_root

BRIEF = 3.0  # seconds: a stage that is over by then is not streamed, which saves it the import of MLflow
EVERY = 3.0  # seconds between two batches of a live run
PATIENCE = 30.0  # seconds that a finished stage waits for its last batch
CURVE = 500  # points of a curve at the most; a metric costs the database 220 bytes
ARTIFACTS = "mlartifacts"  # the folder beside an SQLite store
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's limits for one request

REFUSED = "REFUSED"  # how a stage ends whose input was no good; MLflow has no such word

SCORED = ("score", "fvu", "fvu_inlier", "l0", "dead")  # what a trial of tune is judged by

Point = tuple[int, int, Mapping[str, float]]  # milliseconds, step, values
Log = Callable[[int, Mapping[str, float]], None]


def off() -> bool:
    """Whether the environment switches tracking off."""
    return os.environ.get("STRATA_TRACKING", "").lower() == "off"


def track(experiment: Experiment) -> None:
    """Write ``experiment`` as a run with nested runs; an experiment that is there already adds nothing."""
    if off():
        return
    try:
        with _lock():
            Store().write(experiment)
    except _faults() as error:
        _say("this experiment is not in MLflow", error)


def pipelines() -> list[Any]:
    """The experiments of the store, the newest first; BadInput, in one sentence, where it cannot be read."""
    try:
        with _lock():
            return Store().search(role="pipeline")
    except _faults() as error:
        raise BadInput(f"MLflow cannot be read: {_reason(error)}") from None


def opened() -> tuple[str, str]:
    """The store's whole URI and the number of the experiment that holds our runs, both as `mlflow ui` takes them;
    BadInput, in one sentence, where it cannot be opened."""
    try:
        with _lock():
            store = Store()
            return store.uri, store.place
    except _faults() as error:
        raise BadInput(f"MLflow cannot be opened: {_reason(error)}") from None


@contextmanager
def live(stage: str, params: Mapping[str, Any]) -> Iterator[Log]:
    """Yield ``log(step, values)``, which costs the caller microseconds: a thread sends batches to a nested run.

    ``stage`` is DVC's name (``train@9``) and the values are called as in the stage's history, so that ``track`` can
    adopt the run. A stage that was killed and resumed goes on in the run that it left open; one whose input is refused
    before it has logged anything leaves no run.
    """
    points: SimpleQueue[Point | str] = SimpleQueue()
    thread = Thread(target=_stream, args=(points, stage, flat(params)), daemon=True)
    if not off():
        thread.start()

    def log(step: int, values: Mapping[str, float]) -> None:
        if thread.is_alive():
            points.put((_now(), step, {name: float(value) for name, value in values.items()}))

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    except BadInput:
        status = REFUSED
        raise
    finally:
        if thread.is_alive():
            points.put(status)
            thread.join(PATIENCE)
        if thread.is_alive():
            _say(f"the live curves of {stage} are incomplete", TimeoutError(f"no answer within {PATIENCE:.0f} s"))


def _stream(points: "SimpleQueue[Point | str]", stage: str, params: dict[str, str]) -> None:
    batch, status = _drain(points, BRIEF)
    logged = bool(batch)
    if status == "FINISHED" or (status == REFUSED and not logged):
        return
    try:
        with _lock():
            store = Store()
            run = store.open_live(stage, params)
        store.points(run, batch)
        while status is None:
            batch, status = _drain(points, EVERY)
            logged = logged or bool(batch)
            store.points(run, batch)
        store.client.set_terminated(run, "FAILED" if status == REFUSED else status)
        if status == REFUSED and not logged and not store.client.get_run(run).data.metrics:
            store.client.delete_run(run)
    except _faults() as error:
        _say(f"{stage} is not streamed to MLflow", error)


def _drain(points: "SimpleQueue[Point | str]", seconds: float) -> tuple[list[Point], str | None]:
    """Take what comes within ``seconds``; text instead of a point is the final status."""
    batch: list[Point] = []
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            point = points.get(timeout=left)
        except Empty:
            break
        if isinstance(point, str):
            return batch, point
        batch.append(point)
    return batch, None


class Store:
    """A connection to the store. Open it under the lock: two first starts of one database would collide."""

    def __init__(self, uri: str = "") -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.uri, artifacts = _address(uri or address())
        from mlflow import MlflowClient, entities

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.entities = entities
        self.client = MlflowClient(tracking_uri=self.uri)
        found = self.client.get_experiment_by_name("strata")
        kind = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens on its pages for chat logs
        self.place = found.experiment_id if found else self.client.create_experiment("strata", artifacts, kind)

    def write(self, experiment: Experiment) -> None:
        name, key = experiment_name(), experiment.content_key()
        for run in self.search(role="pipeline", content_key=key):
            if run.info.run_name == name and run.info.status == "FINISHED":
                self._forget_live(experiment)
                return
            if run.info.run_name == name:  # an earlier track was killed while writing it
                self._forget(run.info.run_id)
        tags = {"role": "pipeline", "content_key": key, **_origin(), **_dvc_hashes("")}
        parent = self._create(name, tags, flat(experiment.params))
        self.points(parent, [(_now(), 0, experiment.metrics())])
        for path in experiment.artifacts:
            if path.is_dir():
                self.client.log_artifacts(parent, str(path), path.name)
            else:
                self.client.log_artifact(parent, str(path))
        for stage in experiment.histories:
            run = self._write_stage(experiment, stage, parent)
            if stage == "tune":
                self._write_trials(experiment, run)
        self.client.set_terminated(parent)

    def open_live(self, stage: str, params: dict[str, str]) -> str:
        """The run that a killed attempt with the same params left open, else a new one; close the other ones."""
        mine = None
        for run in self._live(stage):
            if run.info.status == "RUNNING" and mine is None and _agree(run.data.params, params):
                mine = run.info.run_id
            elif run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, "KILLED")
        return mine or self._create(stage, {**_stage_tags(stage), **_live_tags()}, params)

    def points(self, run: str, points: list[Point]) -> None:
        metric = self.entities.Metric
        log = [metric(name, value, at, step) for at, step, row in points for name, value in row.items()]
        self._log(run, "metrics", log)

    def _write_stage(self, experiment: Experiment, stage: str, parent: str) -> str:
        """The nested run of a stage: adopt the live one if there is one, then add what it lacks."""
        params = flat(experiment.stage_params(stage))
        tags = {**_stage_tags(stage), "mlflow.parentRunId": parent, **_dvc_hashes(stage)}
        adopted = [run for run in self._live(stage) if _agree(run.data.params, params)]
        for repeat in adopted[1:]:
            self._forget(repeat.info.run_id)
        if adopted:
            run, there = adopted[0].info.run_id, self._steps(adopted[0])
            self._tag(run, {**tags, "live": "adopted"})
            self._params(run, dict(params.items() - adopted[0].data.params.items()))
        else:
            run, there = self._create(stage, tags, params), set()
        now = _now()
        rows = [
            (
                now,
                int(row["step"]),
                {name: value for name, value in row.items() if (name, int(row["step"])) not in there},
            )
            for row in thin(experiment.histories[stage], CURVE)
        ]
        final = {f"final/{name}": value for name, value in experiment.stage_metrics(stage).items()}
        self.points(run, [*rows, (now, 0, final)])
        self.client.set_terminated(run)
        return run

    def _write_trials(self, experiment: Experiment, parent: str) -> None:
        """A run a trial, nested in tune's: its knobs, its curve, its score and the reason if it failed."""
        for trial in experiment.trials:
            tags = {"role": "trial", "dvc.stage": "tune", "mlflow.parentRunId": parent, "kind": trial["kind"]}
            tags |= {"reason": trial["reason"]} if trial["reason"] else {}
            run = self._create(f"trial {trial['trial']}", tags, flat(trial["knobs"]))
            now = _now()
            rows = [(now, int(row["step"]), row) for row in thin(trial["curve"], CURVE)]
            final = {f"final/{name}": trial[name] for name in SCORED if trial[name] is not None}
            self.points(run, [*rows, (now, 0, final)])
            self.client.set_terminated(run, "FAILED" if trial["score"] is None else "FINISHED")

    def _create(self, name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> str:
        run = self.client.create_run(self.place, run_name=name, tags=dict(tags)).info.run_id
        self._params(run, params)
        return run

    def _tag(self, run: str, tags: Mapping[str, str]) -> None:
        self._log(run, "tags", [self.entities.RunTag(*tag) for tag in tags.items()])

    def _params(self, run: str, params: Mapping[str, str]) -> None:
        self._log(run, "params", [self.entities.Param(*param) for param in params.items()])

    def _log(self, run: str, kind: str, things: list[Any]) -> None:
        for start in range(0, len(things), BATCH[kind]):
            self.client.log_batch(run, **{kind: things[start : start + BATCH[kind]]}, synchronous=True)

    def search(self, **tags: str) -> list[Any]:
        """The runs with these tags, the newest first."""
        words = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return self.client.search_runs([self.place], words, order_by=["attributes.start_time DESC"])

    def _live(self, stage: str) -> list[Any]:
        """What ``live`` left for this stage of this experiment in this checkout, not yet adopted."""
        runs = self.search(**_live_tags())
        mine = {"dvc.stage": stage, "pipeline": experiment_name()}
        return [run for run in runs if mine.items() <= run.data.tags.items()]

    def _steps(self, run: Any) -> set[tuple[str, int]]:
        names = run.data.metrics
        return {(name, point.step) for name in names for point in self.client.get_metric_history(run.info.run_id, name)}

    def _forget(self, run: str) -> None:
        for child in self.search(**{"mlflow.parentRunId": run}):
            self._forget(child.info.run_id)
        self.client.delete_run(run)

    def _forget_live(self, experiment: Experiment) -> None:
        """A forced re-run streams the same curves again: they are in MLflow already."""
        for stage in experiment.histories:
            for run in self._live(stage):
                if _agree(run.data.params, flat(experiment.stage_params(stage))):
                    self._forget(run.info.run_id)


def _agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether every param that both know has one value."""
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def _origin() -> dict[str, str]:
    commit = baseline()
    tags = {"dvc.exp_name": os.environ.get("DVC_EXP_NAME", "")}
    return tags | ({"dvc.baseline": commit, "mlflow.source.git.commit": commit} if commit else {})


def _stage_tags(stage: str) -> dict[str, str]:
    return {"role": "stage", "dvc.stage": stage, "pipeline": experiment_name(), **_origin()}


def _live_tags() -> dict[str, str]:
    return {"live": "true", "checkout": checkout()}


def _dvc_hashes(stage: str, lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """The hashes by which DVC knows the outputs of ``stage``, or with ``""`` of all stages that have no layer."""
    if not lock.exists():
        return {}
    stages = yaml.safe_load(lock.read_text(encoding="utf-8")).get("stages", {})
    wanted = [entry for name, entry in stages.items() if (name == stage if stage else "@" not in name)]
    outs = [out for entry in wanted for out in entry.get("outs", [])]
    return {f"dvc.out.{out['path']}": out["md5"] for out in outs if "md5" in out}


def address() -> str:
    """The store's URI, as the environment gives it."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def database(uri: str) -> Path | None:
    """The file of an SQLite store, None where there is none. As in any URI of SQLAlchemy, `%41` stands for A.

    A relative path counts from the main checkout: in the temporary workspace of a queued experiment it would vanish.
    """
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy import make_url

    name = make_url(uri).database
    return main_root().resolve() / name if name and name != ":memory:" else None


def _address(uri: str) -> tuple[str, str | None]:
    """The store's whole URI and where its artifacts go; a server keeps them itself.

    SQLite is tried out first, because MLflow retries for 100 s on a database that it cannot open.
    """
    if uri.startswith(("http:", "https:", "databricks")):
        return uri, None
    path = database(uri)
    if path is None and uri.startswith("sqlite:"):
        raise OSError(f"{uri} names no file to keep runs in")
    if path is None:
        return uri, (main_root().resolve() / ARTIFACTS).as_uri()
    artifacts = (path.parent / ARTIFACTS).as_uri()
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute(f"PRAGMA user_version = {version}")  # only a write tells whether the file can be written
        connection.rollback()
        _bring_home(connection, artifacts)
    from sqlalchemy import make_url

    # MLflow makes the folders of a plain sqlite:/// URI by its letters, so that %25 would become one.
    whole = make_url(uri).set(drivername="sqlite+pysqlite", database=str(path))
    return whole.render_as_string(hide_password=False), artifacts


def _bring_home(connection: sqlite3.Connection, artifacts: str) -> None:
    """Let the experiment's artifacts lie in ``artifacts``, beside the database: MLflow stores whole paths, by which a
    moved or copied checkout would go on to write into the old one."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"experiments", "runs"} <= tables:
            return
        ours = "SELECT experiment_id, artifact_location FROM experiments WHERE name = 'strata'"
        for number, old in connection.execute(ours).fetchall():
            if not (old or "").startswith("file:") or not old.endswith(f"/{ARTIFACTS}") or old == artifacts:
                continue  # somebody else's choice, or home already
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (artifacts, number)
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (artifacts, len(old) + 1, number, len(old) + 1, f"{old}/"),
            )


def _lock() -> FileLock:
    return FileLock(main_root() / ".mlflow.lock", timeout=120)


def _now() -> int:
    return int(time.time() * 1000)


def _faults() -> tuple[type[Exception], ...]:
    """The ways in which a store can be away; asked only when something is wrong, so that nothing is imported early."""
    faults: tuple[type[Exception], ...] = (OSError, ImportError, sqlite3.Error, yaml.YAMLError)
    if "sqlalchemy.exc" in sys.modules:
        from sqlalchemy.exc import SQLAlchemyError

        faults += (SQLAlchemyError,)
    if "mlflow.exceptions" in sys.modules:
        from mlflow.exceptions import MlflowException

        faults += (MlflowException,)
    return faults


def _say(what: str, why: BaseException) -> None:
    sys.stderr.write(f"tracking: {what} ({_reason(why)}); the results are the same without it\n")


def _reason(why: BaseException) -> str:
    """The first line of an error, without passwords."""
    line = str(why).strip().partition("\n")[0] or type(why).__name__
    for secret in _secrets():
        line = line.replace(secret, "***")
    return re.sub(r"(://)[^/\s@]+@", r"\1***@", line)


def _secrets() -> list[str]:
    """The passwords by which the store is reached, as they are written and as they are meant."""
    try:
        written = urlsplit(address()).password or ""
    except ValueError:  # no address: there is nothing to reach
        written = ""
    named = [os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")]
    return [secret for secret in {written, unquote(written), *named} if secret]
