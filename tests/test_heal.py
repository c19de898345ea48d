"""Unfinished work of a stage x what can damage it: told in a line, done again, and the same bytes at the end.

A test first leaves what a kill would leave, damages one part, and lets the stage go on.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_extract import FACTS, corpus, hashes
from test_extract import knobs as extract_knobs
from test_train import TARGETS
from test_train import knobs as train_knobs
from test_tune import bowl, first
from test_tune import knobs as tune_knobs

from stages import lm as language
from stages import resume, training
from stages.extract import extract as room
from stages.extract.extract import Reading
from stages.extract.shards import Activations, open_activations, open_contexts
from stages.fetch.read import SPLITS
from stages.sae.fit import STATE
from stages.tune.tune import search

LAYERS = [0, 2]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def flip_the_first(path: Path) -> None:
    """The length of a safetensors header, the brace of JSON."""
    flip(path, 0)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def replace(path: Path) -> None:
    """A file, of the same kind if there is one, that belongs elsewhere, with a seal of its own there."""
    others = [file for file in path.parent.parent.rglob("*") if file.is_file() and resume.SEALS not in file.parts]
    others = [file for file in others if file.read_bytes() != path.read_bytes()]
    other = min(others, key=lambda file: (file.suffix != path.suffix, file))
    path.write_bytes(other.read_bytes())


def unseal(path: Path) -> None:
    """Written by what knows of no seals."""
    shutil.rmtree(path.parent / resume.SEALS / path.name)


DAMAGES: list[Callable[[Path], None]] = [cut, empty, flip, flip_the_first, lengthen, replace, unseal]


def told(capsys: pytest.CaptureFixture[str], path: Path, why: str = "is damaged") -> bool:
    """Whether stderr holds one line about ``path``, and nothing else but progress."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "its part is done again" in line]
    return len(lines) == 1 and f"{path} {why}; its part is done again" in lines[0]


# --- extract --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reading(gpt2: Path) -> Reading:
    return room.language(language.load(gpt2, torch.float32, torch.device("cpu")), LAYERS, extract_knobs())


def extract(reading: Reading, folder: Path) -> None:
    texts = corpus()
    documents = {split: iter(texts[split]) for split in SPLITS}
    room.keep_contexts(reading, documents, {split: len(texts[split]) for split in SPLITS}, FACTS, folder / "tokens")
    room.write_shards(reading, open_contexts(folder / "tokens"), LAYERS, 128, FACTS, folder)


@pytest.fixture(scope="module")
def extracted(reading: Reading, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extracted")
    extract(reading, folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "part",
    [
        "tokens/meta.json",
        "tokens/contexts-00000.safetensors",
        "0/shard-00000.safetensors",
        "2/shard-00003.safetensors",  # the last, which is shorter
    ],
)
def test_extract(
    part: str,
    damage: Callable[[Path], None],
    reading: Reading,
    extracted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    work = tmp_path / "work"
    shutil.copytree(extracted, work)
    for layer in LAYERS:
        (work / str(layer) / "meta.json").unlink()
    others = {path: path.stat().st_mtime_ns for path in work.rglob("shard-*") if path.name != Path(part).name}
    damage(work / part)
    extract(reading, work)
    assert told(capsys, work / part)
    assert hashes(work) == hashes(extracted)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in others.items())  # no other is computed again


def test_what_is_delivered_holds_no_seals(extracted: Path, tmp_path: Path):
    shutil.copytree(extracted, tmp_path / "work")
    resume.deliver(tmp_path / "work", tmp_path / "data", ["tokens", "0", "2"])
    assert not [path for path in (tmp_path / "data").rglob("*") if path.name == resume.SEALS]
    assert hashes(tmp_path / "data") == hashes(extracted)


# --- train ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def trained(extracted: Path) -> Callable[..., dict[str, Any]]:
    """A training on what was extracted; what it says at the end, tensors as lists."""
    rows: Activations = open_activations(extracted / "0")
    knobs = train_knobs(latents=16, batch_size=32, auxk_latents=4, epochs=2)

    def train(
        work: Path | None = None, watch: Callable[[int, Any], None] = lambda step, values: None
    ) -> dict[str, Any]:
        fitted, _ = training.train(rows, knobs, TARGETS, 0, watch, work, 0.0)
        saes = {name: {part: t.tolist() for part, t in sae.tensors().items()} for name, sae in fitted.saes.items()}
        return {"saes": saes, "history": fitted.history, "best": fitted.best_step}

    return train


@pytest.fixture(scope="module")
def whole(trained: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return trained()


@pytest.mark.parametrize("damage", [None, cut, empty, flip, replace])
def test_train(
    damage: Callable[[Path], None] | None,
    trained: Callable[..., dict[str, Any]],
    whole: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    resume.keep_bytes(tmp_path / "other" / STATE, b"of another training")
    work = tmp_path / "work"
    work.mkdir()
    steps: list[int] = []

    def kill(step: int, values: dict[str, float]) -> None:
        steps.append(step)
        if step > 3:
            raise Killed

    with pytest.raises(Killed):
        trained(work, kill)
    if damage:
        damage(work / STATE)
        capsys.readouterr()
    again = trained(work, lambda step, values: steps.append(step))
    assert again == whole
    assert steps.count(1) == (2 if damage else 1)  # from the start, or from where it was
    assert damage is None or told(capsys, work / STATE)


# --- tune -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
def test_tune(damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan = tune_knobs(sampler="dummy", calls=5, starts=2)
    whole, _ = search(plan, 7, first(), bowl, work=tmp_path / "0")
    damage(tmp_path / "0/0002.json")
    made: list[dict[str, Any]] = []
    again, _ = search(plan, 7, first(), lambda knobs: made.append(knobs) or bowl(knobs), work=tmp_path / "0")
    assert again == whole and made == [whole[2]["knobs"]]
    assert told(capsys, tmp_path / "0/0002.json")


def test_a_trial_of_other_knobs_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Whole and sealed, but not what the search asks for at that place."""
    plan = tune_knobs(sampler="dummy", calls=4, starts=2)
    whole, _ = search(plan, 7, first(), bowl, work=tmp_path)
    resume.keep_json(tmp_path / "0001.json", {**whole[1], "knobs": whole[2]["knobs"], "score": 0.0})
    again, _ = search(plan, 7, first(), bowl, work=tmp_path)
    assert again == whole
    assert told(capsys, tmp_path / "0001.json", "is of other knobs than the search asks for")
