"""What one sees while work goes on: lines in a log, a bar on a terminal."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from strata.run import progress, resume
from strata.run.progress import Progress, each, remind, tell

ROOT = Path(__file__).resolve().parents[1]


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "_told", 0.0)
    monkeypatch.setattr(progress, "_began", 0.0)
    monkeypatch.setattr(progress, "watch", lambda: None)  # no thread beside the test
    monkeypatch.setattr(progress, "_running", [])
    monkeypatch.setenv("DVC_STAGE", "invert@9")
    monkeypatch.delenv("RANK", raising=False)
    return clock


def test_a_log_gets_a_line_after_each_silence(clock: Clock, capsys: pytest.CaptureFixture[str]):
    for number in each(range(100), "search", "latents"):
        clock.now += 6  # so that the third, the sixth, … end 18 s after the line before
        assert number < 100
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "invert@9: search: 3 of 100 latents, 18 s, about 582 s left"
    assert lines[1] == "invert@9: search: 6 of 100 latents, 36 s, about 564 s left"
    assert len(lines) == 33


def test_quick_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with Progress("train", "steps", 1000) as steps:
        for _ in range(1000):
            clock.now += 0.014
            steps.update()
    assert capsys.readouterr().err == ""


def test_loops_one_after_the_other_break_one_silence(clock: Clock, capsys: pytest.CaptureFixture[str]):
    for title in ("first", "second"):
        for _ in each(iter("ab"), title, "letters"):
            clock.now += 4
    assert capsys.readouterr().err == "invert@9: second: 2 letters, 8 s\n"


def test_a_long_step_and_what_is_no_loop_show_that_they_go_on(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with Progress("search", "latents", 4, done=1) as latents:
        latents.show(best="3.5")
        for _ in range(3):
            clock.now += 8
            remind()
        latents.update()
    for _ in range(3):
        clock.now += 8
        remind()
    assert capsys.readouterr().err.splitlines() == [
        "invert@9: search: 1 of 4 latents, 16 s, best 3.5",
        "invert@9: at work for 32 s",
        "invert@9: at work for 48 s",
    ]


def test_only_the_first_of_several_processes_speaks(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", "1")
    for _ in each("ab", "train", "steps"):
        clock.now += 60
        remind()
    assert capsys.readouterr().err == ""


def test_a_sentence_names_the_stage_that_dvc_runs(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tell("compiles")
    monkeypatch.delenv("DVC_STAGE")
    tell("reads")
    assert capsys.readouterr().err == "invert@9: compiles\nreads\n"


def test_a_thread_breaks_the_silence_of_one_long_call():
    program = "import time; from strata.run import progress; progress.EVERY = 1.5\n"
    program += "with progress.Progress('fit', 'maps', 1): time.sleep(4)"
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stderr
    assert re.fullmatch(r"(fit: 0 of 1 maps, \d s\n){1,2}", said)


PROGRAM = """
import time
from strata.run.progress import each, tell
for n in each(range(30), "search", "latents"):
    time.sleep(0.05)
    if n == 25: tell("half a word")
"""


def on_terminal(*command: str, **environment: str) -> str:
    """What ``command`` writes where its stderr is a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen(command, cwd=ROOT, stderr=theirs, env={**os.environ, **environment}):
        os.close(theirs)
        text = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # Linux says so where the other end is closed
                break
            if not chunk:
                break
            text += chunk
    os.close(ours)
    return text.decode()


def test_a_terminal_gets_a_bar_with_its_rate():
    shown = on_terminal(sys.executable, "-c", PROGRAM)
    assert re.search(r"search: 100%\|█+\| 30/30 \[00:01<00:00, .*latents/s\]", shown)
    assert re.search(r"\rhalf a word\r?\n", shown) and " s left" not in shown


# --- which stage it is ----------------------------------------------------------------------------------------------

LEFT = "; at most about 1 min left, going by earlier runs"


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    shutil.copy(ROOT / "src/__init__.py", tmp_path / "src")
    (tmp_path / "src" / "it.py").write_text("")
    (tmp_path / "params.yaml").write_text("layers: [3, 6]\n")
    (tmp_path / "dvc.yaml").write_text("stages: {select: {}, train: {matrix: {layer: '${layers}'}}, report: {}}\n")
    return tmp_path


def started(folder: Path, stage: str, new_session: bool = False, **environment: str) -> str:
    """What is said when DVC starts ``stage``; ``new_session``: by another `dvc repro`."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "DVC_STAGE": stage, **environment}
    command = [sys.executable, "-m", "src.it"]
    return subprocess.run(
        command, cwd=folder, env=known, capture_output=True, text=True, check=True, start_new_session=new_session
    ).stderr


def test_a_stage_says_which_one_it_is_and_what_is_left_once_that_was_timed(pipeline: Path):
    first_run = [started(pipeline, stage) for stage in ("select", "train@3", "train@6", "report")]
    assert first_run[0] == "select: stage 1 of 4\n" and first_run[2] == "train@6: stage 3 of 4\n"
    assert started(pipeline, "report") == f"report: stage 4 of 4{LEFT}\n"  # as `make` starts track a second time
    assert started(pipeline, "train@6") == f"train@6: stage 3 of 4{LEFT}\n"
    assert started(pipeline, "train@6", RANK="0") == ""


def test_a_stage_that_is_switched_off_needs_no_time(pipeline: Path):
    (pipeline / "params.yaml").write_text("layers: [3, 6]\ntrain: {run: false}\n")
    timed = {"run": 0, "stage": "report", "began": 0.0, "seconds": {"report": 50.0}}
    resume.keep_json(pipeline / ".scratch/stages/seconds.json", timed)
    assert started(pipeline, "train@6") == f"train@6: stage 3 of 4{LEFT}\n"
    (pipeline / "params.yaml").write_text("layers: [3, 6]\ntrain: {run: true}\n")
    assert started(pipeline, "train@3") == "train@3: stage 2 of 4\n"


def test_the_time_between_two_runs_is_no_stage_s(pipeline: Path):
    started(pipeline, "select")
    for stage in ("train@3", "train@6", "report", "report"):
        assert started(pipeline, stage, new_session=True).count(LEFT) == 0
    assert json.loads((pipeline / ".scratch/stages/seconds.json").read_text())["seconds"] == {}
