"""Unfinished work: kept after an error, rid of what is half or damaged, and used by one process at a time."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from strata.run import resume
from strata.run.door import BadInput

FACTS = {"corpus": "c"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def left(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in (root / ".scratch").rglob("*") if path.is_file())


def test_what_was_whole_is_kept_and_what_was_not_is_removed(tmp_path: Path):
    with pytest.raises(KeyError), resume.scratch("extract", FACTS) as work:
        (work / "0").mkdir()
        (work / "0" / "shard-00000.safetensors").write_bytes(b"whole")
        (work / "0" / ".shard-00001.safetensors.17.tmp").write_bytes(b"half")  # as a kill leaves it
        raise KeyError
    with resume.scratch("extract", {**FACTS, "corpus": "another"}) as other:
        assert other != work and not list(other.iterdir())
    with resume.scratch("extract", FACTS) as again:
        assert again == work
        assert [path.name for path in (again / "0").iterdir()] == ["shard-00000.safetensors"]
        resume.deliver(again, tmp_path / "data", ["0"])
    assert (tmp_path / "data/0/shard-00000.safetensors").read_bytes() == b"whole"
    assert left(tmp_path) == []


def test_work_of_no_use_is_told_of_once_and_not_with_a_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(KeyError), resume.scratch("tune", FACTS) as broken_off:
        resume.keep_json(broken_off / "0.json", 1)
        raise KeyError

    for corpus in ("a", "b"):
        with pytest.raises(BadInput), resume.scratch("tune", {**FACTS, "corpus": corpus}):
            raise BadInput("too few rows")
    assert capsys.readouterr().err == "" and [path.is_dir() for path in broken_off.parent.iterdir()].count(True) == 1

    for corpus in ("d", "e"):
        with resume.scratch("tune", {**FACTS, "corpus": corpus}):
            pass
    said = f"tune: .scratch/{broken_off.name} was not used: it is of other inputs, params or code, and may be deleted\n"
    assert capsys.readouterr().err == said
    with resume.scratch("tune", FACTS) as again:
        assert resume.kept_json(again / "0.json") == 1


def test_who_wants_the_same_at_the_same_time_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    order: list[str] = []

    def second() -> None:
        with resume.scratch("extract", FACTS) as work:
            order.append(f"second finds {len(list(work.iterdir()))} files")

    thread = threading.Thread(target=second)
    with resume.scratch("extract", FACTS) as work:
        (work / "file").write_text("mine")
        thread.start()
        said, end = "", time.monotonic() + 60
        while "waiting for that one" not in said and time.monotonic() < end:
            time.sleep(0.05)
            said += capsys.readouterr().err
        assert thread.is_alive() and order == []
        order.append("first ends")
    thread.join(10)
    assert order == ["first ends", "second finds 0 files"]
    assert (said + capsys.readouterr().err).count("waiting for that one") == 1
    assert left(tmp_path) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    """The content of another place, whole and with the seal of that place."""
    shutil.copyfile(path.with_name("1"), path)


def unseal(path: Path) -> None:
    """Put there by somebody who knows of no seals."""
    shutil.rmtree(path.parent / resume.SEALS / path.name)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "stray").touch()


DAMAGES: list[Callable[[Path], None]] = [cut, empty, flip, swap, unseal, folder]
KINDS = {
    "bytes": (resume.keep_bytes, resume.kept_bytes, b"kept"),
    "json": (resume.keep_json, resume.kept_json, {"kept": [1, 0.1, None, "é"]}),
    "tensors": (resume.keep_tensors, resume.kept_tensors, {"x": torch.arange(6.0).view(2, 3)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_is_told_deleted_and_kept_anew(
    kind: str, damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    keep, kept, value = KINDS[kind]
    path, other = tmp_path / ".scratch/stage-9-abc/0", tmp_path / ".scratch/stage-9-abc/1"
    assert kept(path) is None  # nothing is there, which is worth no word
    keep(path, value)
    resume.keep_bytes(other, b"of another place")
    damage(path)
    assert kept(path) is None and not path.exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ": .scratch/stage-9-abc/0 is damaged; its part is done again\n" in said
    keep(path, value)
    assert str(kept(path)) == str(value) and resume.kept_bytes(other) == b"of another place"
    assert capsys.readouterr().err == ""


def test_what_is_kept_again_has_one_seal(tmp_path: Path):
    for content in (b"first", b"second", b"second"):
        resume.keep_bytes(tmp_path / "state", content)
        assert resume.kept_bytes(tmp_path / "state") == content
    assert len(list((tmp_path / resume.SEALS / "state").iterdir())) == 1
    assert resume.sealed_hash(tmp_path / "state") == resume.files.sha256(tmp_path / "state")
    with pytest.raises(KeyError), resume.sealing(tmp_path / "state") as temporary:
        temporary.write_bytes(b"half of the third")
        raise KeyError
    assert resume.kept_bytes(tmp_path / "state") == b"second"


OVERWRITES = """
import sys
from pathlib import Path
from strata.run import resume
for number in range(10**9):
    resume.keep_bytes(Path(sys.argv[1]), str(number).encode() * 20_000)
"""


def test_a_kill_at_any_moment_leaves_something_whole(tmp_path: Path):
    """The seal and the file are two names on the disk; no moment between them loses what was kept."""
    path, seen = tmp_path / "state", []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", OVERWRITES, str(path)], cwd=resume.ROOT)
        while not path.exists() or path.read_bytes() in seen:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        content = resume.kept_bytes(path)
        assert content is not None
        seen.append(content)


def test_no_file_takes_its_name_before_its_bytes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the order of system calls; the folder comes before what says that it is complete."""
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def call(what: object, *rest: object, name: str = name, real: Callable[..., None] = real) -> None:
            path = Path(f"/proc/self/fd/{what}").readlink() if isinstance(what, int) else str(what)
            calls.append(f"{name} {Path(path).name}")
            real(what, *rest)

        monkeypatch.setattr(os, name, call)
    resume.files.write_text(tmp_path / "page.html", "page")
    resume.files.write_json(tmp_path / "meta.json", {})
    page, meta = (f".{name}.{os.getpid()}.tmp" for name in ("page.html", "meta.json"))
    assert calls == [f"fsync {page}", f"replace {page}", f"fsync {meta}", f"fsync {tmp_path.name}", f"replace {meta}"]


def test_many_small_files_are_written_whole_or_the_error_is_told(tmp_path: Path):
    resume.files.write_texts((tmp_path / f"{number}/page.html", str(number)) for number in range(50))
    assert all((tmp_path / f"{number}/page.html").read_text() == str(number) for number in range(50))
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        resume.files.write_texts((tmp_path / name / "page.html", "") for name in ("0", "file", "1"))
