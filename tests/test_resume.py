"""Unfinished work: kept after an error, cleaned of half files, and used by one process at a time."""

import threading
import time
from pathlib import Path

import pytest

from stages import resume

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
