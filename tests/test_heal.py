"""Unfinished work of a stage x what can damage it: told in a line, done again, and the same bytes at the end.

A test first leaves what a kill would leave, damages one part, and lets the stage go on.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from test_extract import FACTS, corpus, hashes
from test_extract import knobs as extract_knobs
from test_train import TARGETS
from test_train import knobs as train_knobs
from test_tune import bowl, first
from test_tune import knobs as tune_knobs

from apps.show.card import card
from stages.train.read import read_history, read_result
from strata.corpus.read import SPLITS
from strata.extraction import extract as room
from strata.extraction.extract import RowSource
from strata.families.read import selected
from strata.interpretation.read import open_latents
from strata.lm import model as language
from strata.rows import shards
from strata.rows.shards import Activations, open_activations, open_contexts
from strata.run import resume
from strata.run.door import BadInput
from strata.training import training
from strata.training.fit import STATE
from strata.tuning.tune import search

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
def reading(gpt2: Path) -> RowSource:
    return room.language(language.load(gpt2, torch.float32, torch.device("cpu")), LAYERS, extract_knobs())


def extract(reading: RowSource, folder: Path) -> None:
    texts = corpus()
    documents = {split: iter(texts[split]) for split in SPLITS}
    room.keep_contexts(reading, documents, {split: len(texts[split]) for split in SPLITS}, FACTS, folder / "tokens")
    room.write_shards(reading, open_contexts(folder / "tokens"), LAYERS, 128, FACTS, folder)


@pytest.fixture(scope="module")
def extracted(reading: RowSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    reading: RowSource,
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
        fitted = training.train(rows, knobs, TARGETS, 0, watch, work, 0.0)
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


# --- finished files, as later stages read them ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have run up to cluster."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        small.make(root)
        small.of_vectors()
        small.change(train__epochs=2)
        small.run("select", "fetch_lm", "fetch_corpus", "extract", "fetch_texts", "extract_texts", "fetch_tasks")
        small.run("extract_tasks", "tune", "train", "stability", "interpret", "explain", "cluster")
    return root


READERS: dict[str, tuple[str, ...]] = {  # a file -> what opens it
    "data/corpus/corpus.parquet": ("extract", "interpret", "cluster"),
    "data/corpus/vectors.npy": ("extract",),
    "data/corpus/meta.json": ("extract",),
    "data/lm/meta.json": ("extract", "train"),
    "data/activations/0/shard-00001.safetensors": ("train", "interpret", "verify"),
    "data/activations/0/meta.json": ("train", "verify"),
    "data/activations/tokens/contexts-00000.safetensors": ("interpret", "cluster", "verify"),
    "data/activations/tokens/meta.json": ("train", "interpret", "verify"),
    "data/sae/0/sae_weights.safetensors": ("interpret", "cluster", "evaluate"),
    "data/sae/0/cfg.json": ("interpret",),
    "data/latents/0/codes/shard-00000.safetensors": ("cluster", "merge"),
    "data/latents/0/statistics.parquet": ("cluster", "show"),
    "data/latents/0/meta.json": ("cluster", "show"),
    "data/latents/0/explanations.parquet": ("explain", "show"),
    "data/latents/0/names.parquet": ("explain", "show"),
    "data/explained/0/explanations.parquet": ("explained",),
    "data/explained/0/names.parquet": ("explained",),
    "data/explained/0/meta.json": ("explained",),
    "data/clusters/0/latents.parquet": ("merge",),
    "data/clusters/0/meta.json": ("merge",),
    "data/clusters/0/selected.json": ("selected",),
    "reports/train/0.csv": ("history",),
    "reports/train/0.json": ("result",),
}
OTHERS: dict[str, Callable[[Path], object]] = {
    "verify": lambda path: shards.verify(path.parent),
    "show": lambda path: card(open_latents(path.parent), 0, 100, False),
    "explained": lambda path: card(open_latents(Path("data/latents/0"), path.parent), 0, 100, False),
    "selected": lambda path: selected(path.parent),
    "history": read_history,
    "result": read_result,
}
HASHED = (".safetensors", ".parquet", ".npy", ".csv")  # whose content somebody has noted a hash of


def flip_in_the_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def of_nothing(path: Path) -> None:
    path.write_text("{}")


def of_a_list(path: Path) -> None:
    path.write_text("[]")


def of_nulls(path: Path) -> None:
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()))))


FINISHED_DAMAGES = [cut, empty, flip_in_the_middle, flip, of_nothing, of_a_list, of_nulls]


@pytest.mark.parametrize("file", READERS)
def test_a_damaged_file_is_named_by_what_reads_it(file: str, finished: Path, monkeypatch: pytest.MonkeyPatch):
    """One sentence with its path, and no other file of the project is touched by then."""
    monkeypatch.chdir(finished)
    path = finished / file
    whole, noted = path.read_bytes(), path.suffix in HASHED
    others = {other: other.stat().st_mtime_ns for other in finished.rglob("data/**/*") if other.is_file()}
    for damage in [*FINISHED_DAMAGES[:4]] if noted else [cut, empty, *FINISHED_DAMAGES[4:]]:
        try:
            damage(path)
            for reader in READERS[file]:
                with pytest.raises(BadInput) as refusal:
                    OTHERS[reader](path) if reader in OTHERS else small.run(reader)
                sentence = str(refusal.value)
                assert file in sentence and "\n" not in sentence, (damage.__name__, reader, sentence)
        finally:
            path.write_bytes(whole)
    now = {other: other.stat().st_mtime_ns for other in finished.rglob("data/**/*") if other.is_file()}
    assert {other for other in others if now.get(other) != others[other]} <= {path}
