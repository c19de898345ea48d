"""Training on rows of one's own: every kind of source gives the same rows, and memory never holds them all."""

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

import strata
from strata.corpus.read import SPLITS
from strata.front import own

KNOBS: dict[str, Any] = {"rule": "topk", "latents": 32, "k": 4, "epochs": 2, "batch_size": 64}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """(1000, 16) float32: two of 24 directions each."""
    rng = np.random.default_rng(0)
    codes = np.where(rng.random((1000, 24)) < 2 / 24, 1 + rng.random((1000, 24)), 0)
    return (codes @ rng.normal(size=(24, 16)) + 0.1).astype(np.float32)


def npz(path: Path, x: np.ndarray) -> None:
    np.savez(path, ids=np.arange(len(x)), states=x)


def parquet(path: Path, x: np.ndarray) -> None:
    pq.write_table(pa.table({"vector": x.tolist(), "id": range(len(x))}), path, row_group_size=300)


def state(path: Path, x: np.ndarray) -> None:
    """As GhostTrack's extractor leaves a layer's states."""
    torch.save({"hidden_states": torch.from_numpy(x), "layer_idx": 6, "num_tokens": len(x)}, path)


FILES: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "states.npy": np.save,
    "states.npz": npz,
    "states.safetensors": lambda path, x: save_file({"states": x, "mean": x.mean(0)}, path),
    "states.parquet": parquet,
    "states.pt": state,
}


def rows_of(stored: Any) -> dict[bytes, int]:
    """Each row, and how often it is there."""
    rows, counts = np.unique(np.asarray(stored), axis=0, return_counts=True)
    return {row.tobytes(): int(count) for row, count in zip(rows, counts, strict=True)}


def test_vectors_keep_every_bit_and_states_are_bfloat16(x: np.ndarray):
    assert rows_of(strata.store(x)) == rows_of(x)
    states = strata.store(x, layer=6, hook="mlp_out")
    assert rows_of(states) == rows_of(torch.from_numpy(x).bfloat16().float().numpy())
    assert (states.layer, states.hook, states.width, len(states)) == (6, "mlp_out", 16, 1000)


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_rows_of_the_array(name: str, x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(own, "BLOCK", 170)
    FILES[name](tmp_path / name, x)
    for source in (tmp_path / name, str(tmp_path / name)):
        found = strata.store(source)
        assert np.array_equal(np.asarray(found), np.asarray(strata.store(x)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]  # nothing is left beside it


def test_training_does_not_depend_on_how_rows_come(x: np.ndarray, tmp_path: Path):
    """An array, its shards one by one, files of them, and batches as a DataLoader gives them: the same bits."""
    paths = []
    for number, first in enumerate(range(0, 1000, 300)):
        paths.append(tmp_path / f"{number}.npy")
        np.save(paths[-1], x[first : first + 300])
    whole = strata.train(x, layer=6, **KNOBS)
    assert isinstance(whole, strata.Fitted) and whole.quality.set_index("what")["fvu"]["SAE"] < 0.5
    batches = [[torch.from_numpy(x[first : first + 7])] for first in range(0, 1000, 7)]
    for source in (iter(batches), paths, (torch.from_numpy(part) for part in np.split(x, 4))):
        again = strata.train(source, layer=6, **KNOBS)
        assert torch.equal(again.sae.decoder, whole.sae.decoder)

    whole.save(tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.6.hook_resid_post"


def test_one_shard_is_in_memory_at_a_time(x: np.ndarray):
    seen: list[weakref.ref[Any]] = []

    def shards() -> Iterator[np.ndarray]:
        for first in range(0, 1000, 100):
            assert sum(shard() is not None for shard in seen) <= 1, "an earlier shard is still held"
            shard = x[first : first + 100].copy()
            seen.append(weakref.ref(shard))
            yield shard

    found = strata.store(shards())
    assert len(seen) == 10 and len(found) == 1000


def test_held_out_rows_are_stretches_of_neighbours(x: np.ndarray):
    rows = strata.store(np.arange(4000, dtype=np.float32)[:, None] + np.ones((1, 2), np.float32), seed=3)
    held = {name: np.asarray(rows)[slice(*rows.split(name)), 0].astype(int) - 1 for name in SPLITS}
    assert sorted(np.concatenate(list(held.values()))) == list(range(4000))
    assert [len(held[name]) for name in SPLITS] == [3200, 400, 400]
    for name in ("validation", "test"):
        assert len(np.unique(held[name] // 40)) == 10  # ten stretches of 40 rows


def test_rows_without_texts_have_no_examples(x: np.ndarray):
    rows = strata.store(x)
    with pytest.raises(strata.BadInput, match="these rows have no texts"):
        strata.latents(strata.train(rows, **KNOBS), rows)
    with pytest.raises(strata.BadInput, match="layer is 3, but the rows are of layer 0"):
        strata.train(rows, layer=3)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (3, r"source is 3; it must be \(rows, numbers\)"),
        ([1, 2], r"source\[0\] is 1; it must be \(rows, numbers\)"),
        (np.ones(4), r"source is an array of float64 \(4,\)"),
        (np.array([["a", "b"]]), "source is an array of <U1"),
        ([np.ones((4, 2)), np.ones((4, 3))], "rows from number 4 on have 3 numbers, but those before 2"),
        ([np.ones((4, 2)), np.full((1, 2), np.nan)], "row 4 holds NaN or infinity"),
        ([], "the source gives no rows"),
        (np.eye(5), "5 rows are too few"),
        (np.zeros((100, 4)), "are zero, every one of them"),
        ("nowhere.npy", "nowhere.npy is missing"),
        ({"x": np.ones((9, 2))}, "source is of type dict"),
    ],
)
def test_rows_that_are_none(source: Any, said: str):
    with pytest.raises(strata.BadInput, match=said):
        strata.store(source)


def test_files_that_hold_no_rows(x: np.ndarray, tmp_path: Path):
    np.savez(tmp_path / "two.npz", a=x, b=x)
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "torn.safetensors").write_bytes(b"no")
    (tmp_path / "text.txt").write_text("no")
    pq.write_table(pa.table({"vector": [[1.0], [1.0, 2.0]], "text": ["a", "b"]}), tmp_path / "uneven.parquet")
    for name, key, said in (
        ("two.npz", None, "holds 2 arrays of .rows, numbers., not one; of a, b name one as key"),
        ("two.npz", "c", "has no array 'c'; it has a, b"),
        ("torn.npy", None, "is no file of plain arrays"),
        ("torn.safetensors", None, "is damaged"),
        ("text.txt", None, "is no file of rows that is known here"),
        ("uneven.parquet", None, "does not hold equally long lists"),
        ("uneven.parquet", "text", "does not hold equally long lists"),
        ("uneven.parquet", "x", "has no column 'x'; it has vector, text"),
    ):
        with pytest.raises(strata.BadInput, match=said):
            strata.store(tmp_path / name, key=key)
    assert len(strata.store(tmp_path / "two.npz", key="b")) == 1000
    with pytest.raises(strata.BadInput, match="validation is 0 and test"):
        strata.store(x, validation=0)
