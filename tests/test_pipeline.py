"""The whole pipeline as a user meets it: DVC, its experiments, its remote, MLflow, a kill, and mistakes.

One tiny project in a git repository of its own, on a tiny random model and made-up text; a stage costs seconds there
only because a process imports torch. The first run is killed in the middle of extract and goes on, so that all that
follows also compares against that.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import yaml
from conftest import WORDS, save_tiny_lm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LAYERS = [0, 2]
STAGES = [
    *("select", "fetch_lm", "fetch_corpus", "extract", "fetch_texts", "extract_texts"),
    *("fetch_tasks", "extract_tasks", "tune"),
    *(
        f"{stage}@{layer}"
        for stage in (
            *("train", "controls", "stability", "interpret", "explain", "cluster", "merge", "invert", "steer_eval"),
            "evaluate",
        )
        for layer in LAYERS
    ),
    *("report", "track"),
]
PARAMS = {
    "layers": LAYERS,
    "machine.threads": 1,
    "fetch.lm.source": "inputs/lm",
    "fetch.corpus.sources": [{"source": "inputs/text.jsonl", "label": "animal"}],
    "extract.tokens": 6000,
    "extract.context": 16,
    "extract.batch_size": 1,  # slow, so that there is time to kill it
    "extract.shard_rows": 128,
    "train.latents": 64,
    "train.k": 8,
    "train.auxk_latents": 16,
    "train.epochs": 2,
    "train.batch_size": 256,
    "train.ce_tokens": 200,
    "interpret.window": 8,
    "explain.model": None,
    "tune.calls": 3,
    "tune.starts": 1,
    "tune.rows": None,
    "cluster.map.method": "pca",  # importing umap takes seconds, in every run and layer
    "merge.ce_tokens": 0,  # the stage would load the model for it
    "invert.latents": 2,
    "invert.tokens": 4,
    "invert.greedy.starts.pool": 4,
    "steer_eval.latents": 2,
    "steer_eval.prompts": 4,
    "steer_eval.tokens": 6,
    "steer_eval.generate.tokens": 4,
    "evaluate.seeds": 2,
    "evaluate.probing.k": [1],
    "evaluate.tasks.sources": [],
    "evaluate.letters": 500,
}


@dataclass
class Project:
    """A checkout, and how to run things in it as a user with an empty home folder would."""

    folder: Path
    env: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, *words: str, code: int | None = 0) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert code is None or done.returncode == code, (
            f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}"
        )
        return done.stdout

    def dvc(self, *words: str, code: int | None = 0) -> str:
        return self.run("dvc", *words, code=code)

    def git(self, *words: str) -> str:
        return self.run("git", *words)

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-qm", message)
        return self.git("rev-parse", "HEAD").strip()

    def lock(self, revision: str | None = None) -> dict[str, Any]:
        text = self.git("show", f"{revision}:dvc.lock") if revision else (self.folder / "dvc.lock").read_text()
        return yaml.safe_load(text)["stages"]

    def experiments(self) -> dict[str, str]:
        """The commits of DVC's experiments by name."""
        lines = self.git("for-each-ref", "refs/exps", "--format=%(refname) %(objectname)").splitlines()
        pairs = (line.split() for line in lines if not line.startswith(("refs/exps/exec", "refs/exps/celery")))
        return {name.rpartition("/")[2]: commit for name, commit in pairs}

    def hashes(self, *folders: str) -> dict[str, str]:
        files = [path for name in folders for path in sorted((self.folder / name).rglob("*")) if path.is_file()]
        return {str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """The runs in MLflow's database that have these tags: name, tags, metrics, parameters."""
        with closing(sqlite3.connect(f"file:{self.folder}/mlflow.db?mode=ro", uri=True)) as database:
            found = []
            for uuid, name in database.execute(
                "select run_uuid, name from runs where lifecycle_stage = 'active' order by start_time"
            ).fetchall():
                table = {
                    what: dict(database.execute(f"select key, value from {what} where run_uuid = ?", [uuid]))
                    for what in ("tags", "latest_metrics", "params")
                }
                if tags.items() <= table["tags"].items():
                    found.append({"name": name, **table})
        return found


def set_params(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "params.yaml"
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        *parents, key = name.split(".")
        place = whole
        for parent in parents:
            place = place[parent]
        assert key in place, name
        place[key] = value
    path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")


def ran(output: str) -> list[str]:
    """The stages that DVC really ran, not skipped and not taken from its cache."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]


def wait_for(what: Callable[[], Any], seconds: float, pause: float = 0.2) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(pause)
    return found


def environment(home: Path) -> dict[str, str]:
    foreign = ("DVC_", "GIT_", "MLFLOW_", "STRATA_", "XDG_", "HF_")
    home.mkdir()
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Someone\n\temail = someone@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
    }


def text(documents: int = 160) -> str:
    random = np.random.default_rng(0)
    rows = [
        {"text": " ".join(random.choice(WORDS, 60)), "animal": ("cat", "dog")[number % 2]}
        for number in range(documents)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def copied(folder: Path, *houses: str) -> None:
    """Copy the code and what DVC reads into ``folder``. What Numba compiles is that of this checkout."""
    for name in houses:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [folder / "strata", *(path for path in folder.glob("strata/**/*") if path.is_dir())]:
        cache = ROOT / path.relative_to(folder) / "__pycache__"
        cache.mkdir(exist_ok=True)
        (path / "__pycache__").symlink_to(cache)
    (folder / ".dvc").mkdir()
    for name in ("dvc.yaml", "params.yaml", "labels.yaml", ".dvc/config", ".dvcignore", ".gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project after its first `dvc repro`, which was killed in the middle of extract and started again.

    After the kill its stages are forked from a process that has imported their libraries.
    """
    root = tmp_path_factory.mktemp("pipeline")
    folder = root / "project"
    copied(folder, "src", "stages", "strata")
    set_params(folder, PARAMS)
    save_tiny_lm(folder / "inputs" / "lm", "gpt2")
    (folder / "inputs" / "text.jsonl").write_text(text())
    (folder / "inputs" / "questions.jsonl").write_text(text(20))
    project = Project(folder, environment(root / "home"))
    project.git("init", "-q")
    project.commit("start")

    process = project.start("dvc", "repro")
    scratch = folder / ".scratch"
    wait_for(
        # Writers end in reverse, so that the first layer's shard is the last one of its number.
        lambda: process.poll() is not None or list(scratch.glob(f"extract-*/{LAYERS[0]}/shard-00001.safetensors")),
        120, pause=0.02,
    )  # fmt: skip
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    project.facts["killed"] = process.returncode, output
    project.facts["scratch"] = sorted(path.name for path in scratch.glob(f"extract-*/{LAYERS[0]}/*"))
    with forked.python(root / "python", project.env) as project.env:
        project.facts["resumed"] = project.dvc("repro")
        project.facts["base"] = project.commit("base")
        project.facts["lock"] = (folder / "dvc.lock").read_bytes()
        project.facts["hashes"] = project.hashes("data", "reports")
        yield project


def test_a_killed_extract_goes_on_where_it_was(project: Project):
    code, output = project.facts["killed"]
    assert code == -signal.SIGKILL and ran(output) == STAGES[:4]
    kept = [name for name in project.facts["scratch"] if name.startswith("shard-")]
    assert len(kept) >= 2 and "meta.json" not in project.facts["scratch"]  # it was in the middle
    assert ran(project.facts["resumed"]) == STAGES[3:]
    shards = json.loads((project.folder / "data/activations/0/meta.json").read_text())["shards"]
    assert len(shards) > len(kept)
    assert [path.name for path in (project.folder / ".scratch").glob("*")] == ["stages"]  # how long they took


def test_every_artifact_is_there(project: Project):
    expected = [
        "data/lm/meta.json",
        "data/corpus/corpus.parquet",
        "data/activations/tokens/meta.json",
        "reports/scorecard.json",
        "reports/summary.json",
        "reports/report.html",
    ]
    for layer in LAYERS:
        expected += [f"data/activations/{layer}/meta.json", f"data/sae/{layer}/cfg.json"]
        expected += [f"data/sae/{layer}/sae_weights.safetensors", f"data/sae/{layer}/final/sae_weights.safetensors"]
        expected += [f"reports/train/{layer}.json", f"reports/train/{layer}.csv", f"reports/interpret/{layer}.json"]
        expected += [f"reports/evaluate/{layer}.json"]
        expected += [
            f"data/clusters/{layer}/{name}" for name in ("meta.json", "latents.parquet", "selected.json", "map.html")
        ]
        expected += [f"reports/cluster/{layer}.json", f"reports/latents/{layer}/map.html"]
        expected += [f"reports/latents/{layer}/index.html"]
        expected += [f"data/latents/{layer}/{name}" for name in ("meta.json", "statistics.parquet", "examples.parquet")]
        expected += [f"data/explained/{layer}/{name}.parquet" for name in ("explanations", "names")]
        expected += [f"reports/explain/{layer}.json"]
    assert set(expected) <= set(project.facts["hashes"])
    assert list((project.folder / "reports/plots").glob("*.png"))
    card = json.loads((project.folder / "reports/scorecard.json").read_text())
    assert {line["layer"] for line in card["targets"]} == set(LAYERS)
    assert project.git("status", "--porcelain") == ""  # all else is ignored


def test_a_second_run_does_nothing(project: Project):
    output = project.dvc("repro")
    assert ran(output) == [] and "up to date" in output
    assert (project.folder / "dvc.lock").read_bytes() == project.facts["lock"]
    assert project.dvc("status").strip() == "Data and pipelines are up to date."


AGAIN = """
import importlib, sys
for command in sys.argv[1:]:
    _, _, module, *words = command.split()
    importlib.import_module(module).main(*words)
"""


def test_every_stage_writes_the_same_bytes_again(project: Project):
    """So the run that was killed ended with the bytes of one that was not. Layer 0 would be the same code once more."""
    lock = project.lock()
    again = {stage: lock[stage] for stage in STAGES[:-1] if not stage.endswith("@0")}
    outs = [project.folder / out["path"] for entry in again.values() for out in entry["outs"]]
    before = time.time_ns()
    commands = [entry["cmd"] for entry in again.values()]
    # In one process, which spares what they import; other strings hash otherwise in it.
    project.run("env", "STRATA_TRACKING=off", "PYTHONHASHSEED=7", sys.executable, "-c", AGAIN, *commands)
    assert project.hashes("data", "reports") == project.facts["hashes"]
    assert all(max(path.stat().st_mtime_ns for path in [out, *out.rglob("*")]) > before for out in outs)


@pytest.fixture(scope="module")
def experiments(project: Project) -> dict[str, str]:
    """What DVC said of: a layer's k changed in the workspace, the same in a temporary one, and two from the queue."""
    said = {"k4": project.dvc("exp", "run", "--name", "k4", "-S", "+by_layer.2.k=4")}
    project.facts["k4 hashes"] = project.hashes("data", "reports")
    project.git("reset", "-q", "--hard")
    said["cached"] = project.dvc("exp", "run", "--temp", "--name", "cached", "-S", "+by_layer.2.k=4")
    said["worded"] = project.dvc("exp", "run", "--temp", "--name", "worded", "-S", "explain.shown=9")
    questions = "interpret.texts={sources: [{source: inputs/questions.jsonl, label: animal}], min_chars: 0}"
    off = ("cluster", "merge", "invert")
    less = ["layers=[2]", "extract.layers=[0,2]", *(f"{stage}.run=false" for stage in off)]
    queued = {
        "questions": [*less, "steer_eval.prompts=1", questions],
        "seeded": [*less, "steer_eval.run=false", "seed=1"],
    }
    for name, changes in queued.items():
        project.dvc("exp", "run", "--queue", "--name", name, *(word for change in changes for word in ("-S", change)))
    project.dvc("queue", "start", "-j", "2")
    wait_for(lambda: queued.keys() <= project.experiments().keys(), 300, pause=1)
    wait_for(lambda: "Running" not in project.dvc("queue", "status"), 60, pause=1)
    said["status"] = project.dvc("queue", "status")
    for name in queued:
        said[name] = project.dvc("queue", "logs", name)
    project.dvc("exp", "apply", "k4")
    project.facts["k4"] = project.commit("k is 4")
    return said


def test_an_experiment_runs_only_what_it_touches(experiments: dict[str, str]):
    alone = [stage for stage in STAGES[9:] if not stage.endswith("@0")]
    assert ran(experiments["k4"]) == ["select", *alone]
    assert ran(experiments["cached"]) == ["select", "track"]  # these really run, whatever is kept
    assert ran(experiments["worded"]) == ["select", "explain@0", "explain@2", "report", "track"]


def test_queued_experiments_run_side_by_side(project: Project, experiments: dict[str, str]):
    assert experiments["status"].count("Success") == 2
    assert ran(experiments["questions"]) == [  # layer 2 was extracted, tuned on and trained before
        "select",
        "fetch_texts",
        "extract_texts",
        "interpret@2",
        "explain@2",
        "cluster@2",
        "merge@2",
        "invert@2",
        "steer_eval@2",
        "report",
        "track",
    ]
    assert ran(experiments["seeded"]) == [
        "select",
        "fetch_corpus",
        "extract",
        "fetch_texts",  # there are no other texts, whatever the seed, so that nothing is extracted from them again
        "fetch_tasks",  # and no tasks
        "tune",
        "train@2",
        "controls@2",
        "stability@2",
        "interpret@2",
        "explain@2",
        "cluster@2",
        "merge@2",
        "invert@2",
        "steer_eval@2",
        "evaluate@2",
        "report",
        "track",
    ]
    commits = {"base": project.facts["base"], **project.experiments()}
    weights = {name: project.lock(commit)["train@2"]["outs"][0]["md5"] for name, commit in commits.items()}
    assert weights["questions"] == weights["base"] != weights["k4"] == weights["cached"]
    assert weights["seeded"] not in (weights["base"], weights["k4"])


def test_every_experiment_is_one_comparable_row(project: Project, experiments: dict[str, str]):
    assert experiments
    rows = {run["name"]: run for run in project.runs(role="pipeline")}
    base = f"repro-{project.git('rev-parse', project.facts['base'] + '~').strip()[:7]}"
    assert len(project.runs(role="pipeline")) == len(rows)
    assert set(rows) >= {base, "k4", "cached", "worded", "questions", "seeded"}
    columns = {name: set(run["latest_metrics"]) for name, run in rows.items()}
    assert columns[base] == columns["k4"] == columns["cached"]
    assert "steer_eval.2.beating_all" in columns["questions"] - columns["seeded"], "steered on other texts, too"
    assert columns["questions"] < columns["k4"] and columns["seeded"] < columns["k4"]  # one layer, fewer stages
    assert rows["k4"]["latest_metrics"] == rows["cached"]["latest_metrics"] != rows[base]["latest_metrics"]
    card = json.loads((project.folder / "reports/scorecard.json").read_text())["targets"]
    given = [line for line in card if line["value"] is not None]
    assert {line["metric"] for line in card if line not in given} <= {"ce_recovered"}  # this model may beat no zero
    for line in given:
        shown = rows["k4"]["latest_metrics"]
        assert shown[f"train.{line['layer']}.{line['metric']}"] == pytest.approx(line["value"])
        assert shown[f"target/{line['metric']}/{line['layer']}/pass"] == line["pass"]
    assert rows["seeded"]["params"]["seed"] == "1" and rows["k4"]["params"]["by_layer.2.k"] == "4"
    assert rows["k4"]["params"]["train.2.k"] == "4" and rows[base]["params"]["train.2.k"] == "8"
    assert max(len(row["latest_metrics"]) for row in rows.values()) <= 150


def test_tracking_again_adds_nothing(project: Project, experiments: dict[str, str]):
    assert experiments
    # The commit has moved since, so this is an experiment of a new name; only its second time adds nothing.
    project.dvc("repro", "-f", "-s", "track")
    before = project.runs()
    assert ran(project.dvc("repro", "-f", "-s", "track")) == ["track"]
    assert project.runs() == before


def sources(path: str, **knobs: str) -> dict[str, Any]:
    return {"fetch.corpus.sources": [{"source": path, **knobs}]}


def test_mistakes_are_told_and_cost_nothing(project: Project):
    """DVC removes a stage's outputs before it runs; what was there before comes back from the cache."""
    before, lock = project.hashes("data", "reports"), project.lock()
    (project.folder / "inputs" / "empty.csv").write_text("text\n")
    mistakes = [
        ("extract", {"layers": [9]}, "params.yaml: layers names layer 9, but the model has 4 blocks: 0 to 3"),
        ("fetch_corpus", sources("inputs/text.jsonl", text="body"), "has no column 'body'"),
        ("fetch_corpus", sources("inputs/none.csv"), "inputs/none.csv is missing; params.yaml names it as a source"),
        ("fetch_corpus", sources("inputs/empty.csv"), "the corpus is empty: 0 documents were read"),
    ]
    for stage, change, sentence in mistakes:
        set_params(project.folder, change)
        output = project.dvc("repro", stage, code=255)
        said = [line for line in output.splitlines() if line.startswith(f"{stage}: ")]
        assert len(said) == 1 and sentence in said[0], output
        assert "Traceback" not in output and ran(output)[-1] == stage
        assert project.lock()[stage] == lock[stage]
        project.git("checkout", "-q", "HEAD", "--", "params.yaml", "dvc.lock")
    project.git("clean", "-qfd", "inputs")
    project.dvc("checkout")
    assert project.hashes("data", "reports") == before
    assert ran(project.dvc("repro")) == [] and project.git("status", "--porcelain") == ""


def test_a_name_runs_the_report_alone_and_other_prompts_are_fetched(project: Project):
    meta = json.loads((project.folder / "data/latents/0/meta.json").read_text())
    (project.folder / "labels.yaml").write_text(f"0/{meta['sae']}:\n  1: named by hand\n")
    assert ran(project.dvc("repro", "report")) == ["report"]
    assert "named by hand" in (project.folder / "reports/latents/0/1.html").read_text()
    project.git("checkout", "-q", "HEAD", "--", "labels.yaml", "dvc.lock", "reports/summary.json")
    project.dvc("checkout")

    set_params(project.folder, {"evaluate.tasks.regimes": ["normal", "ood"]})
    stale = {name.partition("@")[0] for name in json.loads(project.dvc("status", "--json"))}
    project.git("checkout", "-q", "HEAD", "--", "params.yaml")
    assert stale == {"select", "fetch_tasks", "evaluate", "track"}
    assert project.dvc("status").strip() == "Data and pipelines are up to date."


def test_an_earlier_commit_comes_back_byte_for_byte(project: Project, experiments: dict[str, str]):
    assert experiments
    for commit, hashes in (("base", "hashes"), ("k4", "k4 hashes")):
        project.git("checkout", "-q", project.facts[commit])
        project.dvc("checkout")
        assert project.hashes("data", "reports") == project.facts[hashes]
    project.git("checkout", "-q", "main")
    of_latents = re.compile(r"reports/(latents|plots/steering-)")  # living and selected latents differ
    names = [{name for name in project.facts[of] if not of_latents.match(name)} for of in ("hashes", "k4 hashes")]
    assert names[0] == names[1]
    assert project.facts["hashes"] != project.facts["k4 hashes"]


def test_a_clone_takes_the_results_from_a_remote(project: Project):
    """All but the model, which is not handed on (`push: false`): the clone fetches that for itself."""
    project.dvc("remote", "add", "-d", "store", "../store")
    project.commit("remote")
    project.dvc("push")
    project.git("clone", "-q", ".", "../clone")
    clone = Project(project.folder.parent / "clone", project.env)

    clone.dvc("pull", "--allow-missing")
    assert not (clone.folder / "data" / "lm").exists()
    assert ran(clone.dvc("repro", "--allow-missing")) == []
    assert ran(clone.dvc("repro")) == ["fetch_lm"]
    assert clone.dvc("status").strip() == "Data and pipelines are up to date."
    assert clone.git("status", "--porcelain") == ""
    assert clone.hashes("data", "reports") == project.hashes("data", "reports")
