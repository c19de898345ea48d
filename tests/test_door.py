"""The door: how every script ends, whatever it is given."""

import errno
import importlib
import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from strata.run import door
from strata.run.door import BadInput

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "src").glob("*.py") if path.stem != "__init__")


def enter(monkeypatch: pytest.MonkeyPatch, main: Any, *words: str) -> int:
    """The exit code of ``main``, run as a script with ``words``."""
    monkeypatch.setattr(sys, "argv", ["src/it.py", *words])
    with pytest.raises(SystemExit) as end:
        door.run(main)
    assert isinstance(end.value.code, int)
    return end.value.code


def move(source: str, target: str, third: str = "", fourth: str = "here") -> None:
    """SOURCE: what is read; TARGET: what is written."""
    raise AssertionError("must not be called")


def test_bad_input_is_one_sentence_and_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def main(path: str) -> None:
        raise BadInput(f"{path} is empty; give it a line")

    assert enter(monkeypatch, main, "a.txt") == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.endswith("a.txt is empty; give it a line\n")
    assert enter(monkeypatch, main, "a\nb\x1b[31m") == 1
    assert capsys.readouterr().err.endswith(r"a b\x1b[31m is empty; give it a line" + "\n")


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "SOURCE, TARGET are missing: "),
        (["a"], "TARGET is missing: "),
        (["a", "b", "c", "d", "e f"], "'e f' is one word too many: "),
        (["a", ""], "TARGET is empty: "),
        (["a", "b", "", ""], "FOURTH is empty: "),
        (["--hlep"], "--hlep is no option; did you mean --help?"),
        (["a", "b", "-v"], "-v is no option; a path that begins so is written ./-v"),
        (["a", "b", "--third=x"], "--third=x is no option; THIRD is given by its place: "),
    ],
)
def test_wrong_words_are_one_sentence_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
):
    assert enter(monkeypatch, move, *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.partition(": ")[2].startswith(sentence)
    assert not sentence.endswith(": ") or err.endswith(" SOURCE TARGET [THIRD] [FOURTH]\n")


def test_numbers_below_zero_and_empty_words_reach_the_script(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    def main(first: str, second: str, third: str = "") -> None:
        seen.extend((first, second, third))

    monkeypatch.setattr(sys, "argv", ["src/it.py", "-1", "-", ""])
    door.run(main)
    assert seen == ["-1", "-", ""]


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["a", "b", "c", "--help"]])
def test_help_is_printed_and_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
):
    monkeypatch.setattr(sys, "argv", ["src/it.py", *words])
    door.run(move)
    out, err = capsys.readouterr()
    assert out.startswith("usage: python -m ") and err == ""
    assert out.endswith(" SOURCE TARGET [THIRD] [FOURTH]\n\nSOURCE: what is read; TARGET: what is written.\n")


def test_the_version_is_the_commit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["src/it.py", "--version"])
    door.run(move)
    assert re.fullmatch(r"strata (\S+|of no known commit)\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_an_example_that_runs(name: str):
    main = importlib.import_module(f"src.{name}").main
    sys.modules.pop(f"src.{name}")  # other tests run it as `python -m` does, which warns where it is there already
    example = re.search(r"^Example: (.*)\Z", inspect.getdoc(main) or "", re.MULTILINE)
    assert example
    first, *words = shlex.split(example[1])
    if first == "dvc":
        known = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        command, stage = words
        assert command == "repro" and known[stage.partition("@")[0]]["cmd"].startswith(f"python -m src.{name} ")
        words = known[stage.partition("@")[0]]["cmd"].split()[2:]
    assert words[0] == ("-m" if first == "python" else f"src.{name}")
    words = words[2:] if first == "python" else words[1:]
    door.check_words(main, [word for word in words if name != "run" or word != "-S"])  # which run reads itself


def test_ctrl_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def main() -> None:
        raise KeyboardInterrupt

    assert enter(monkeypatch, main) == 130
    assert capsys.readouterr().err == "py: interrupted\n"


def test_ctrl_c_while_modules_are_imported(tmp_path: Path):
    (tmp_path / "src").mkdir()
    shutil.copy(ROOT / "src/__init__.py", tmp_path / "src")
    (tmp_path / "src" / "it.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    # A shell has what it starts in the background ignore SIGINT, and so would the child.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-m", "src.it"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=listening)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_nobody_reads_on():
    """`python -m src.it | head -1`"""
    program = "import sys; from strata.run.door import run\n"
    program += "def main() -> None: print('x\\n' * 10**6)\nrun(main)\n"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        assert it.stdout and it.stderr
        it.stdout.readline()
        it.stdout.close()
        assert (it.stderr.read(), it.wait()) == ("", 141)


# --- what the system says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("file/below", "Not a directory"),
        ("folder", "Is a directory"),
        ("none/at/all", "No such file or directory"),
        ("x" * 300, "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        ("/proc/self/nothing", "No such file or directory"),
        ("/proc/sys/kernel/nothing", "No such file or directory"),
    ],
)
def test_what_the_system_says_of_a_path_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str, sentence: str
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)

    def main(target: str) -> None:
        Path(target).write_text("x")

    assert enter(monkeypatch, main, path) == 1
    assert capsys.readouterr().err == f"py: {path}: {sentence.lower()}\n"


def test_both_paths_of_a_move_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def main() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", b"a", None, "b")

    assert enter(monkeypatch, main) == 1
    assert capsys.readouterr().err == "py: a -> b: permission denied\n"


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a bug"),
        FileNotFoundError("no path in it"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused", "host"),
        BrokenPipeError(errno.EPIPE, "of another pipe"),
    ],
)
def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception):
    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["src/it.py"])
    with (tmp_path / "out").open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(type(error)):
            door.run(main)


def test_a_word_that_is_near():
    assert door.near("Trian", ["fetch", "train"]) == "; did you mean train?"
    assert door.near("kk", ["k", "lr"]) == "; did you mean k?"
    assert door.near("nothing", ["k", "lr"]) == door.near("x", []) == ""


def test_cycles_are_looked_for_again_once_all_is_imported(tmp_path: Path):
    (tmp_path / "src").mkdir()
    shutil.copy(ROOT / "src/__init__.py", tmp_path / "src")
    program = "import gc; before = gc.isenabled()\nfrom strata.run.door import run\n"
    program += "def main() -> None: print(before, gc.isenabled(), gc.get_freeze_count() > 1000)\nrun(main)\n"
    (tmp_path / "src" / "it.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "src.it"]
    assert subprocess.check_output(command, cwd=tmp_path, env=environment, text=True) == "False True True\n"


def test_a_script_that_reads_options_itself_gets_them():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in ROOT.glob("benchmarks/*.py")}
    reading = {name: text for name, text in texts.items() if "argparse" in text and "run(main" in text}
    assert len(reading) > 10 and [name for name, text in reading.items() if "run(main, options=True)" not in text] == []
