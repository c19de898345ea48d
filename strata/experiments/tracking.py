"""Runs in MLflow: this is the only module that talks to it. It observes, and cannot change an output.

The store is the one that ``MLFLOW_TRACKING_URI`` names, else ``mlflow.db`` of the main checkout with its artifacts
beside it, where they stay when the checkout is moved or copied. If anything goes wrong with the store, one line on
stderr says so, without the password that its address may hold, and the stage goes on. ``STRATA_TRACKING=off`` in the
environment switches tracking off.

``track`` writes one comparable row for an experiment from its files, so that the row is complete even when every stage
came out of DVC's cache. A nested run for each stage and layer holds its curves. ``live`` streams the curves of a long
stage while it runs, and ``track`` adopts the run that ``live`` left, instead of writing a second one.
"""

import json
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

BRIEF = 3.0  # seconds: a stage that ends earlier is not streamed, which saves it the import of MLflow
EVERY = 3.0  # seconds between two batches of a live run
PATIENCE = 30.0  # seconds that a finished stage waits for its last batch to be sent
CURVE = 500  # most points of a curve; each metric of a point costs the database 220 bytes
ARTIFACTS = "mlartifacts"  # the folder beside an SQLite store
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's limits for one request

VIEW = "verdict"  # the name of a view of the runs table
READ_FIRST = "fvu_inlier", "delta_ce", "l0", "dead"  # of the last layer, that it shows beside the verdict

REFUSED = "REFUSED"  # status of a stage whose input was refused; MLflow has no such status

SCORED = ("score", "fvu", "fvu_inlier", "l0", "dead")  # numbers by which a trial of tune is judged

Point = tuple[int, int, Mapping[str, float]]  # milliseconds, step, values
Log = Callable[[int, Mapping[str, float]], None]


def off() -> bool:
    """Say whether the environment switches tracking off."""
    return os.environ.get("STRATA_TRACKING", "").lower() == "off"


def track(experiment: Experiment) -> None:
    """Write ``experiment`` as a run with nested runs; do nothing for an experiment that is in the store already."""
    if off():
        return
    try:
        with _lock():
            Store().write(experiment)
    except _faults() as error:
        _say("this experiment is not in MLflow", error)


def pipelines() -> list[Any]:
    """List the experiments of the store, the newest first. Raises BadInput where it cannot be read."""
    try:
        with _lock():
            return Store().search(role="pipeline")
    except _faults() as error:
        raise BadInput(f"MLflow cannot be read: {_reason(error)}") from None


def opened() -> tuple[str, str]:
    """Return the store's whole URI and the number of the MLflow experiment that holds our runs, for `mlflow ui`.

    Raises BadInput where the store cannot be opened.
    """
    try:
        with _lock():
            store = Store()
            store.show_verdict()
            return store.uri, store.place
    except _faults() as error:
        raise BadInput(f"MLflow cannot be opened: {_reason(error)}") from None


@contextmanager
def live(stage: str, params: Mapping[str, Any]) -> Iterator[Log]:
    """Yield ``log(step, values)``, which streams values to a nested run.

    A call costs microseconds, because a thread sends the values in batches. ``stage`` is DVC's name (``train@9``), and
    the names of the values are those of the stage's history, so that ``track`` can adopt the run. A stage that was
    killed and resumed goes on in the run that it left open. A stage whose input is refused before it has logged
    anything leaves no run.
    """
    points: SimpleQueue[Point | str] = SimpleQueue()
    thread = Thread(target=_stream, args=(points, stage, flat(params)), daemon=True)
    if not off():
        thread.start()

    # Where the thread is off, or has ended after a fault of the store, values are dropped.
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
    """Send the points of a live run to the store until its final status comes. Runs in a thread."""
    # A brief stage, or one that is refused at once, needs no run.
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
        # A run that an earlier attempt left may hold points, and then it stays.
        if status == REFUSED and not logged and not store.client.get_run(run).data.metrics:
            store.client.delete_run(run)
    except _faults() as error:
        _say(f"{stage} is not streamed to MLflow", error)


def _drain(points: "SimpleQueue[Point | str]", seconds: float) -> tuple[list[Point], str | None]:
    """Take the points that come within ``seconds``, and the final status, a text, if it comes, else None."""
    batch: list[Point] = []
    end = time.monotonic() + seconds
    while (seconds_left := end - time.monotonic()) > 0:
        try:
            item = points.get(timeout=seconds_left)
        except Empty:
            break
        if isinstance(item, str):
            return batch, item
        batch.append(item)
    return batch, None


class Store:
    """A connection to the store. Open it under the lock: two first starts of one database would collide.

    ``place`` is the id of the MLflow experiment "strata", which holds all our runs. A run is named by its id.
    """

    def __init__(self, uri: str = "") -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.uri, artifacts = _address(uri or address())
        from mlflow import MlflowClient, entities  # takes a second, and reads the environment

        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.WARNING)

        self.entities = entities
        self.client = MlflowClient(tracking_uri=self.uri)
        existing = self.client.get_experiment_by_name("strata")
        kind = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens on its pages for chat logs
        self.place = existing.experiment_id if existing else self.client.create_experiment("strata", artifacts, kind)

    def write(self, experiment: Experiment) -> None:
        """Write an experiment as a run, with a nested run for each stage; do nothing if it is there already."""
        name, key = experiment_name(), experiment.content_key()
        for run in self.search(role="pipeline", content_key=key):
            if run.info.run_name == name and run.info.status == "FINISHED":
                self._forget_live(experiment)
                return
            if run.info.run_name == name:  # an earlier call was killed while it wrote this run
                self._forget(run.info.run_id)

        tags = {"role": "pipeline", "content_key": key, **_origin(), **_dvc_hashes("")}
        if verdict := experiment.scorecard.get("verdict"):
            tags |= {"verdict": verdict, "mlflow.note.content": verdict}
        params = {**flat(experiment.params), **experiment.settled()}
        parent = self._create(name, tags, params, self._began(experiment))
        now = _now()
        self.points(parent, [(now, 0, experiment.row()), *((now, *point) for point in experiment.curves())])
        for path in experiment.artifacts:
            if path.is_dir():
                self.client.log_artifacts(parent, str(path), path.name)
            else:
                self.client.log_artifact(parent, str(path))

        for stage in experiment.histories:
            run = self._write_stage(experiment, stage, parent)
            if stage == "tune":
                self._write_trials(experiment, run)
            for twin, numbers in experiment.twins(stage).items():
                self._write_twin(experiment, stage, twin, numbers, parent)

        self.show_verdict()
        # Last, so that a run without this status is known to be unfinished.
        self.client.set_terminated(parent)

    def open_live(self, stage: str, params: dict[str, str]) -> str:
        """Return the run that a killed attempt with the same params left open, else a new one; close all others."""
        resumed = None
        for run in self._live(stage):
            if run.info.status == "RUNNING" and resumed is None and _agree(run.data.params, params):
                resumed = run.info.run_id
            elif run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, "KILLED")
        return resumed or self._create(stage, {**_stage_tags(stage), **_live_tags()}, params)

    def points(self, run: str, points: list[Point]) -> None:
        """Add the values of points to a run."""
        metric = self.entities.Metric
        metrics = [
            metric(name, value, milliseconds, step)
            for milliseconds, step, values in points
            for name, value in values.items()
        ]
        self._log(run, "metrics", metrics)

    def _write_stage(self, experiment: Experiment, stage: str, parent: str) -> str:
        """Write the nested run of a stage, and return it: adopt the live run if there is one, and add what it lacks."""
        params = flat(experiment.stage_params(stage))
        tags = {**_stage_tags(stage), "mlflow.parentRunId": parent, **_dvc_hashes(stage)}

        # Adopt the newest live run, and delete the others.
        live_runs = self._live_of(experiment, stage)
        for repeat in live_runs[1:]:
            self._forget(repeat.info.run_id)
        if live_runs:
            run, logged = live_runs[0].info.run_id, self._steps(live_runs[0])
            self._tag(run, {**tags, "live": "adopted"})
            self._params(run, dict(params.items() - live_runs[0].data.params.items()))
        else:
            run, logged = self._create(stage, tags, params), set()

        # Add the points of the curve that the live run does not have.
        now = _now()
        points: list[Point] = []
        for row in thin(experiment.histories[stage], CURVE):
            step = int(row["step"])
            points.append((now, step, {name: value for name, value in row.items() if (name, step) not in logged}))

        final = {f"final/{name}": value for name, value in experiment.stage_metrics(stage).items()}
        self.points(run, [*points, (now, 0, final), (now, 0, experiment.thresholds(stage))])
        self.client.set_terminated(run)
        return run

    def _write_twin(
        self, experiment: Experiment, stage: str, twin: str, numbers: Mapping[str, float], parent: str
    ) -> None:
        """Write a run for a twin, with the columns of the SAE's own run: train's params, and the final numbers."""
        name = stage.replace("controls", "train")
        tags = {"role": "twin", "dvc.stage": stage, "mlflow.parentRunId": parent, "twin": twin}
        run = self._create(f"{name} {twin}", tags, {**flat(experiment.stage_params(name)), "twin": twin})
        self.points(run, [(_now(), 0, {f"final/{metric}": value for metric, value in numbers.items()})])
        self.client.set_terminated(run)

    def show_verdict(self) -> None:
        """Keep VIEW, a view of the runs table, with the experiment, as the button Share of MLflow's page does."""
        view = json.dumps({"selectedColumns": ["tags.`verdict`", *self._columns()]})
        self.client.set_experiment_tag(self.place, f"mlflow.sharedViewState.{VIEW}", view)

    def _columns(self) -> list[str]:
        """Return the columns of the runs table for READ_FIRST of the newest experiment; none before there is one."""
        known = next((run.data.metrics for run in self.search(role="pipeline")), {})
        last = max((int(name.split(".")[1]) for name in known if name.startswith("train.")), default=0)
        names = ("targets.passed", *(f"train.{last}.{name}" for name in READ_FIRST))
        return [f"metrics.`{name}`" for name in names if name in known]

    def _write_trials(self, experiment: Experiment, parent: str) -> None:
        """Write a run for each trial of tune: its knobs, its curve, its score, and the reason if it failed."""
        for trial in experiment.trials:
            tags = {"role": "trial", "dvc.stage": "tune", "mlflow.parentRunId": parent, "kind": trial["kind"]}
            tags |= {"reason": trial["reason"]} if trial["reason"] else {}
            run = self._create(f"trial {trial['trial']}", tags, flat(trial["knobs"]))

            now = _now()
            points = [(now, int(row["step"]), row) for row in thin(trial["curve"], CURVE)]
            final = {f"final/{name}": trial[name] for name in SCORED if trial[name] is not None}
            self.points(run, [*points, (now, 0, final)])
            self.client.set_terminated(run, "FAILED" if trial["score"] is None else "FINISHED")

    def _began(self, experiment: Experiment) -> int | None:
        """Return when the first stage that streamed live began, in milliseconds; None if all came out of a cache."""
        began: dict[str, int] = {}  # stage -> when its newest live run began, which is the one that is adopted
        for run in self.search(**_live_tags(), pipeline=experiment_name()):
            stage = run.data.tags["dvc.stage"]
            if stage in experiment.histories and _agree(run.data.params, flat(experiment.stage_params(stage))):
                began.setdefault(stage, run.info.start_time)
        return min(began.values(), default=None)

    def _create(self, name: str, tags: Mapping[str, str], params: Mapping[str, str], began: int | None = None) -> str:
        """Create a run and return it. ``began``: when it began, if that was not now."""
        run = self.client.create_run(self.place, began, dict(tags), name).info.run_id
        self._params(run, params)
        return run

    def _tag(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self._log(run, "tags", [self.entities.RunTag(*tag) for tag in tags.items()])

    def _params(self, run: str, params: Mapping[str, str]) -> None:
        """Add params to a run."""
        self._log(run, "params", [self.entities.Param(*param) for param in params.items()])

    def _log(self, run: str, kind: str, entries: list[Any]) -> None:
        """Add metrics, params or tags to a run, in requests of a size that MLflow accepts."""
        for start in range(0, len(entries), BATCH[kind]):
            self.client.log_batch(run, **{kind: entries[start : start + BATCH[kind]]}, synchronous=True)

    def search(self, **tags: str) -> list[Any]:
        """List the runs with these tags, the newest first."""
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return self.client.search_runs([self.place], condition, order_by=["attributes.start_time DESC"])

    def _live(self, stage: str) -> list[Any]:
        """List the runs, not yet adopted, that ``live`` left for this stage of this experiment in this checkout."""
        runs = self.search(**_live_tags())
        wanted_tags = {"dvc.stage": stage, "pipeline": experiment_name()}
        return [run for run in runs if wanted_tags.items() <= run.data.tags.items()]

    def _live_of(self, experiment: Experiment, stage: str) -> list[Any]:
        """List those of the live runs that have the params of ``experiment``, the newest first."""
        params = flat(experiment.stage_params(stage))
        return [run for run in self._live(stage) if _agree(run.data.params, params)]

    def _steps(self, run: Any) -> set[tuple[str, int]]:
        """Return (metric, step) of every point of a run."""
        names = run.data.metrics
        return {(name, point.step) for name in names for point in self.client.get_metric_history(run.info.run_id, name)}

    def _forget(self, run: str) -> None:
        """Delete a run and the runs nested in it."""
        for child in self.search(**{"mlflow.parentRunId": run}):
            self._forget(child.info.run_id)
        self.client.delete_run(run)

    def _forget_live(self, experiment: Experiment) -> None:
        """Delete the live runs of an experiment that is in the store: a forced re-run streams the same curves again."""
        for stage in experiment.histories:
            for run in self._live_of(experiment, stage):
                self._forget(run.info.run_id)


def _agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Say whether every param that is in both has the same value in both."""
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def _origin() -> dict[str, str]:
    """Return the tags that say which commit and which of DVC's experiments a run belongs to."""
    commit = baseline()
    tags = {"dvc.exp_name": os.environ.get("DVC_EXP_NAME", "")}
    return tags | ({"dvc.baseline": commit, "mlflow.source.git.commit": commit} if commit else {})


def _stage_tags(stage: str) -> dict[str, str]:
    """Return the tags of a stage's nested run."""
    return {"role": "stage", "dvc.stage": stage, "pipeline": experiment_name(), **_origin()}


def _live_tags() -> dict[str, str]:
    """Return the tags by which live runs of this checkout are found."""
    return {"live": "true", "checkout": checkout()}


def _dvc_hashes(stage: str, lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """Return, as tags, DVC's hashes of the outputs of ``stage``, or with ``""`` of all stages without a layer."""
    if not lock.exists():
        return {}

    stages = yaml.safe_load(lock.read_text(encoding="utf-8")).get("stages", {})
    wanted = [entry for name, entry in stages.items() if (name == stage if stage else "@" not in name)]
    outs = [out for entry in wanted for out in entry.get("outs", [])]
    return {f"dvc.out.{out['path']}": out["md5"] for out in outs if "md5" in out}


def address() -> str:
    """Return the store's URI from the environment, or the default one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def database(uri: str) -> Path | None:
    """Return the file of an SQLite store; None for a store that is no file.

    As in any URI of SQLAlchemy, `%41` stands for A. A relative path counts from the main checkout, because a file in
    the temporary workspace of a queued experiment would vanish.
    """
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy import make_url

    name = make_url(uri).database
    return main_root().resolve() / name if name and name != ":memory:" else None


def _address(uri: str) -> tuple[str, str | None]:
    """Return the store's whole URI, and where its artifacts go: None for a server, which keeps them itself.

    An SQLite database is opened here first, because MLflow tries for 100 s to open one that it cannot open.
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
        connection.execute(f"PRAGMA user_version = {version}")  # only a write shows whether the file can be written
        connection.rollback()
        _bring_home(connection, artifacts)

    from sqlalchemy import make_url

    # Of a plain sqlite:/// URI MLflow would create the folders without decoding it: a folder called %25, for example.
    whole = make_url(uri).set(drivername="sqlite+pysqlite", database=str(path))
    return whole.render_as_string(hide_password=False), artifacts


def _bring_home(connection: sqlite3.Connection, artifacts: str) -> None:
    """Change the place of the experiment's artifacts in the database to ``artifacts``, the folder beside it.

    MLflow stores whole paths. With the old path, a checkout that was moved or copied would go on to write into the old
    folder.
    """
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"experiments", "runs"} <= tables:
            return

        our_experiments = "SELECT experiment_id, artifact_location FROM experiments WHERE name = 'strata'"
        for number, old in connection.execute(our_experiments).fetchall():
            if not (old or "").startswith("file:") or not old.endswith(f"/{ARTIFACTS}") or old == artifacts:
                continue  # the user chose another place, or it is right already

            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (artifacts, number)
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (artifacts, len(old) + 1, number, len(old) + 1, f"{old}/"),
            )


def _lock() -> FileLock:
    """Return the lock under which the store is opened and written."""
    return FileLock(main_root() / ".mlflow.lock", timeout=120)


def _now() -> int:
    """Return the time in milliseconds."""
    return int(time.time() * 1000)


def _faults() -> tuple[type[Exception], ...]:
    """Return the errors that a store may raise. Libraries that were not imported cannot have raised any."""
    faults: tuple[type[Exception], ...] = (OSError, ImportError, sqlite3.Error, yaml.YAMLError)
    if "sqlalchemy.exc" in sys.modules:
        from sqlalchemy.exc import SQLAlchemyError

        faults += (SQLAlchemyError,)
    if "mlflow.exceptions" in sys.modules:
        from mlflow.exceptions import MlflowException

        faults += (MlflowException,)
    return faults


def _say(what: str, error: BaseException) -> None:
    """Say on stderr what is missing in the store, and why."""
    sys.stderr.write(f"tracking: {what} ({_reason(error)}); the results are the same without it\n")


def _reason(error: BaseException) -> str:
    """Return the first line of an error's message, without passwords."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    for secret in _secrets():
        line = line.replace(secret, "***")
    return re.sub(r"(://)[^/\s@]+@", r"\1***@", line)


def _secrets() -> list[str]:
    """Return the passwords by which the store is reached, as they are written in its URI and decoded."""
    try:
        in_uri = urlsplit(address()).password or ""
    except ValueError:  # no valid URI, so no store is reached by it
        in_uri = ""
    in_environment = [os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")]
    return [secret for secret in {in_uri, unquote(in_uri), *in_environment} if secret]
