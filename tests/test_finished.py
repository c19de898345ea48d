"""DVC killed between a stage's end and its own commit: the stage is not computed again, and nothing else changes."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from test_heal import flip
from test_pipeline import ROOT, Project, environment

pytestmark = pytest.mark.slow

STAGE = """
import os, signal
from pathlib import Path
from strata.run.door import run
from strata.run.files import write_json
from strata.run.finished import kept
from strata.run.params import read_yaml

def main(source: str, target: str, report: str) -> None:
    runs = Path("runs")
    runs.write_text(runs.read_text() + "x")
    write_json(Path(target) / "part" / "rows.json", [Path(source).read_text(), read_yaml(Path("params.yaml"))["seed"]])
    write_json(Path(report), {"rows": 1})

run(kept(main))
if Path("kill").exists():
    Path("kill").unlink()
    os.killpg(0, signal.SIGKILL)
"""
PIPELINE = {
    "stages": {
        name: {
            "matrix": {"layer": "${layers}"},
            "cmd": f"python -m {module} source.txt data/{name}/${{item.layer}} reports/{name}/${{item.layer}}.json",
            "deps": ["source.txt", f"{module}.py"],
            "params": ["seed", "report.key"] if name == "one" else ["seed"],
            "outs": [f"data/{name}/${{item.layer}}", {f"reports/{name}/${{item.layer}}.json": {"cache": False}}],
        }
        for name, module in (("one", "first"), ("two", "second"))
    }
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    env = environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
    project = Project(folder, env)
    for name, text in (("first.py", STAGE), ("second.py", STAGE), ("source.txt", "text"), ("runs", "")):
        (folder / name).write_text(text)
    (folder / "params.yaml").write_text(yaml.safe_dump({"layers": [9], "seed": 1, "report": {"key": 0}}))
    (folder / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    project.git("init", "-q")
    project.dvc("init", "-q")
    project.dvc("config", "cache.type", "reflink,hardlink,symlink,copy")
    return project


def killed(project: Project) -> None:
    (project.folder / "kill").touch()
    process: subprocess.Popen[str] = project.start("dvc", "repro", "one@9")
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert (project.folder / "data/one/9/part/rows.json").exists() and "one@9" not in lock(project)


def lock(project: Project) -> str:
    path = project.folder / "dvc.lock"
    return path.read_text() if path.exists() else ""


def test_a_kill_in_dvcs_commit_costs_nothing(project: Project):
    killed(project)
    killed(project)  # now what is put back is killed before it is locked
    assert (project.folder / "runs").read_text() == "x"
    said = project.dvc("repro", "one@9")
    assert "one@9: it had finished when DVC was stopped; its outputs are put back" in said
    assert (project.folder / "runs").read_text() == "x" and "one@9" in lock(project)
    assert project.dvc("status", "one@9").strip() == "Data and pipelines are up to date."
    inside, before = project.hashes("data", "reports"), lock(project)

    project.dvc("repro", "-f", "one@9")  # what is asked for again is really done again, to the same bytes
    assert (project.folder / "runs").read_text() == "xx"
    assert project.hashes("data", "reports") == inside and lock(project) == before

    project.dvc("repro", "two@9")  # by now the first is locked: its links are gone
    kept = project.hashes(".scratch/finished/files")
    assert all("/two/" in path for path in kept) and len(kept) == 2
    assert os.access(project.folder / "data/one/9/part/rows.json", os.R_OK)


def test_what_has_changed_or_is_damaged_is_computed(project: Project):
    killed(project)
    kept = project.folder / ".scratch/finished/files/data/one/9/part/rows.json"
    kept.chmod(0o644)
    flip(kept)
    said = project.dvc("repro", "one@9")
    assert ".scratch/finished is damaged (data/one/9/part/rows.json); its part is done again" in said
    assert (project.folder / "runs").read_text() == "xx"

    (project.folder / "source.txt").write_text("another text")
    (project.folder / "dvc.lock").unlink()
    killed(project)
    (project.folder / "params.yaml").write_text(yaml.safe_dump({"layers": [9], "seed": 2, "report": {"key": 0}}))
    project.dvc("repro", "one@9")
    assert (project.folder / "runs").read_text() == "xxxx"
    assert "  2\n" in (project.folder / "data/one/9/part/rows.json").read_text()
