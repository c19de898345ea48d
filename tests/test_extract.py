"""Extract: rows are what transformers computes, whatever the batch size, and after a kill."""

import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, save_tiny_lm

from strata.corpus.read import SPLITS
from strata.extraction import extract as room
from strata.extraction.contexts import Layout, fill
from strata.lm import model as language
from strata.rows.shards import open_activations, open_contexts, verify
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.run.resume import SEALS

CPU = torch.device("cpu")
FACTS = {"model": {"name": "tiny", "revision": None, "fingerprint": "abc"}, "corpus": "c", "hook": "resid_post"}


def knobs(**changes: Any) -> room.Extract:
    values = {"hook": "resid_post", "tokens": 400, "context": 8, "pack": False, "batch_size": 7, "dtype": "float32"}
    return room.Extract(**{**values, "layers": None, "normalize": True, "shard_rows": 64, **changes})


def corpus(documents: int = 60) -> dict[str, list[dict[str, Any]]]:
    random = np.random.default_rng(0)
    found: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for number in range(documents):
        text = " ".join(random.choice(WORDS, random.integers(3, 25)))
        found[SPLITS[0 if number % 5 else 1 + number % 2]].append({"document": number, "text": text})
    return found


def extract(folder: Path, model: Path, layers: list[int], params: room.Extract) -> Path:
    lm = language.load(model, language.DTYPES[params.dtype], CPU)
    texts = corpus()
    tokens = folder / "tokens"
    counts = {split: len(texts[split]) for split in SPLITS}
    facts = {**FACTS, "hook": params.hook, "forward": params.dtype}
    source = room.language(lm, layers, params)
    room.keep_contexts(source, {split: iter(texts[split]) for split in SPLITS}, counts, facts, tokens)
    room.write_shards(source, open_contexts(tokens), layers, params.shard_rows, facts, folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and SEALS not in path.parts]
    return {str(path.relative_to(folder)): sha256(path) for path in files}


PLAIN = Layout(context=4, pack=False, bos=1, padding=1, special=frozenset({1, 2}))


def test_contexts_by_hand():
    documents = [(7, [10, 11, 12, 13]), (8, [14]), (9, []), (5, [15, 2, 16])]
    assert list(fill(documents, PLAIN)) == [
        ([1, 10, 11, 12], [-1, 7, 7, 7]),
        ([1, 13], [-1, 7]),
        ([1, 14], [-1, 8]),
        ([1, 15, 2, 16], [-1, 5, -1, 5]),  # a special token inside the text is read, but is no row
    ]


def test_packed_contexts_by_hand():
    layout = Layout(context=5, pack=True, bos=1, padding=1, special=frozenset({1}))
    assert list(fill([(7, [10, 11]), (8, [12, 13, 14])], layout)) == [
        ([1, 10, 11, 1, 12], [-1, 7, 7, -1, 8]),
        ([1, 13, 14], [-1, 8, 8]),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_equal_hidden_states(tiny_lm: Path, tmp_path: Path, dtype: str):
    """Exactly, up to the shard's bfloat16; each row has the token and the document that it came from."""
    params = knobs(dtype=dtype)
    extract(tmp_path, tiny_lm, [0, 2], params)
    lm, contexts = language.load(tiny_lm, language.DTYPES[dtype], CPU), open_contexts(tmp_path / "tokens")
    ids, documents = contexts.read(0, contexts.split("test")[1])
    kept = torch.from_numpy(documents >= 0)
    states = []
    for first in range(0, len(ids), params.batch_size):
        batch = torch.from_numpy(ids[first : first + params.batch_size]).long()
        states.append(lm.model(input_ids=batch, output_hidden_states=True).hidden_states)
    for layer in (0, 2):
        theirs = torch.cat([state[layer + 1] for state in states])[kept].to(torch.bfloat16)
        ours = open_activations(tmp_path / str(layer))
        assert torch.equal(ours.read(0, ours.rows), theirs)

    texts = {d["document"]: d["text"] for split in corpus().values() for d in split}
    for split in SPLITS:
        tokens, owners = contexts.rows(split)
        for document in np.unique(owners):
            expected = lm.tokenizer(texts[document], add_special_tokens=False)["input_ids"]
            found = tokens[owners == document].tolist()
            assert found == expected[: len(found)]
            assert len(found) == len(expected) or document == owners[-1]  # the budget may cut the last one


@pytest.mark.parametrize("pack", [False, True])
def test_batch_size_changes_no_byte(tiny_lm: Path, tmp_path: Path, pack: bool):
    found = []
    for size in (1, 7, 64):
        found.append(hashes(extract(tmp_path / str(size), tiny_lm, [1, 3], knobs(batch_size=size, pack=pack))))
    assert found[0] == found[1] == found[2]


def test_hooks_store_what_they_name(gpt2: Path, tmp_path: Path):
    rows = {}
    for hook in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
        stored = open_activations(extract(tmp_path / hook, gpt2, [1], knobs(hook=hook)) / "1")
        rows[hook] = stored.read(0, stored.rows).float()
    total = rows["resid_pre"] + rows["attn_out"] + rows["mlp_out"]
    torch.testing.assert_close(total, rows["resid_post"], rtol=0.03, atol=0.1)  # four roundings to bfloat16


def test_statistics_are_those_of_the_training_rows(gpt2: Path, tmp_path: Path):
    stored = open_activations(extract(tmp_path, gpt2, [1], knobs()) / "1")
    x = stored.read(*stored.split("train")).double()
    assert stored.meta["rows"] >= 400 and stored.split("test")[1] == stored.rows
    torch.testing.assert_close(stored.mean.double(), x.mean(0), rtol=1e-5, atol=1e-6)
    assert (stored.scale * x).square().sum(1).mean() == pytest.approx(stored.width)
    assert stored.median_norm == pytest.approx(float(np.median(x.norm(dim=1).numpy())))


def test_a_killed_pass_goes_on_and_ends_with_the_same_bytes(gpt2: Path, tmp_path: Path):
    whole = hashes(extract(tmp_path / "whole", gpt2, [0, 2], knobs()))
    part = extract(tmp_path / "part", gpt2, [0, 2], knobs())
    for layer in ("0", "2"):  # as a kill leaves it: some whole shards, a temporary one, no meta.json
        (part / layer / "meta.json").unlink()
        for shard in sorted((part / layer).glob("shard-*"))[3 if layer == "0" else 2 :]:
            shard.unlink()
    (part / "0" / ".shard-00003.safetensors.1.tmp").write_bytes(b"half")
    stamp = (part / "0" / "shard-00001.safetensors").stat().st_mtime_ns
    extract(part, gpt2, [0, 2], knobs())
    (part / "0" / ".shard-00003.safetensors.1.tmp").unlink()
    assert hashes(part) == whole
    assert (part / "0" / "shard-00001.safetensors").stat().st_mtime_ns == stamp  # it was not written again


def test_only_the_shards_that_are_not_there_are_computed(gpt2: Path, tmp_path: Path):
    """As processes leave it that took turns and were killed."""
    whole = hashes(extract(tmp_path / "whole", gpt2, [0, 2], knobs()))
    part = extract(tmp_path / "part", gpt2, [0, 2], knobs())
    for layer, number in ((0, 1), (2, 1), (2, 4), (0, 5), (2, 5)):
        (part / str(layer) / f"shard-{number:05d}.safetensors").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in part.glob("*/shard-*")}
    extract(part, gpt2, [0, 2], knobs())
    assert hashes(part) == whole
    assert {path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp} == {
        "shard-00004.safetensors"
    }


def test_a_damaged_or_foreign_shard_is_named(gpt2: Path, tmp_path: Path):
    extract(tmp_path, gpt2, [0, 2], knobs())
    shard = tmp_path / "0" / "shard-00001.safetensors"
    original = shard.read_bytes()
    assert verify(tmp_path / "0") == len(open_activations(tmp_path / "0").shards)

    shard.write_bytes(original[:-10])
    with pytest.raises(BadInput, match=r"shard-00001.safetensors is truncated"):
        open_activations(tmp_path / "0")
    shard.write_bytes((tmp_path / "2" / "shard-00001.safetensors").read_bytes())
    with pytest.raises(BadInput, match=r"shard-00001.safetensors is not the shard .*resid_post.2"):
        open_activations(tmp_path / "0")
    shard.write_bytes(b"nonsense")
    with pytest.raises(BadInput, match=r"no safetensors file"):
        open_activations(tmp_path / "0")
    shard.unlink()
    with pytest.raises(BadInput, match=r"shard-00001.safetensors is missing"):
        open_activations(tmp_path / "0")
    shard.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))  # one bit, which only the hash can tell
    open_activations(tmp_path / "0")
    with pytest.raises(BadInput, match=r"shard-00001.safetensors does not have the hash"):
        verify(tmp_path / "0")


def test_nan_in_activations_stops(tmp_path: Path):
    model = save_tiny_lm(tmp_path / "lm", "gpt2")
    lm = language.load(model, torch.float32, CPU)
    lm.model.get_parameter("transformer.h.1.mlp.c_proj.bias").data[3] = float("nan")
    lm.model.save_pretrained(model)
    with pytest.raises(BadInput, match=r"computes NaN or infinity in block 1, in float32"):
        extract(tmp_path / "out", model, [0, 2], knobs())
    assert not (tmp_path / "out" / "0" / "meta.json").exists()


def test_too_little_disk_or_memory_is_said_before_the_start(tmp_path: Path):
    with pytest.raises(BadInput, match=r"extract \(3 layers\) needs 6144000.00 GB of disk"):
        room.check_room(tmp_path, knobs(tokens=10**12), 3, 1024, 0)
    with pytest.raises(BadInput, match=r"needs 1000001.0 GB of memory"):
        room.check_room(tmp_path, knobs(), 3, 1024, 10**15)


def test_a_full_disk_is_one_sentence_and_leaves_no_half_shard(gpt2: Path, tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
        with pytest.raises(BadInput, match=r"the disk is full: .*shard-00000.safetensors could not be written"):
            extract(tmp_path, gpt2, [0], knobs(tokens=4000, shard_rows=4000, context=64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "0").glob("*"))
