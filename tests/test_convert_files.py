"""What src.convert turns away: code in a file, damage, what cannot be said; the hub; the card."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from apps.convert import card
from src.convert import main
from strata.formats import hub
from strata.formats.read import read
from strata.run.door import BadInput
from strata.run.files import read_json, write_json
from strata.sae import disk

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Payload:
    """What a malicious file holds: opened as Python would, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def convert(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "src.convert", *words],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "sae.pt"
    source, _ = foreign.dl_topk(tmp_path / "source")
    for place in (path, source / "ae.pt"):
        torch.save({"enc.weight": Payload(made)}, place)
    run = convert(str(path), str(tmp_path / "out"))
    sentence = "asks for posix.system, and to open it could run code, so it was not opened"
    assert run.returncode == 1 and run.stderr.startswith(f"convert: {path} {sentence}") and run.stderr.count("\n") == 1
    with pytest.raises(BadInput, match=f"ae.pt {sentence}"):
        main(str(source), str(tmp_path / "out"))
    assert not made.exists() and not (tmp_path / "out").exists()
    torch.load(path, weights_only=False)  # and it would have
    assert made.exists()


def tensors(source: Path, **changes: Tensor | None) -> None:
    path = next(source.glob("*.safetensors"))
    held = {name: tensor for name, tensor in {**load_file(path), **changes}.items() if tensor is not None}
    save_file(held, path)


def config(source: Path, name: str = "cfg.json", **changes: Any) -> None:
    write_json(source / name, read_json(source / name) | changes)


NAN = torch.full((foreign.LATENTS,), torch.nan)
BROKEN: dict[str, list[tuple[Callable[[Path], Any], str]]] = {
    "saelens_uncentred": [
        (lambda at: tensors(at, threshold=None), r"such an SAE has .*threshold \(latent\).*\(threshold\)"),
        (lambda at: tensors(at, threshold=torch.ones(1)), r"\(threshold\), where width is 16, latent is 48"),
        (lambda at: tensors(at, threshold=NAN), "threshold holds numbers that are not finite"),
    ],
    "saelens_standard": [
        (lambda at: tensors(at, W_skip=torch.ones(2, 2)), r"holds .*W_skip \(2, 2\).*\(W_skip\)"),
        (lambda at: tensors(at, scaling_factor=torch.full((48,), 2.0)), "scaling_factor is not 1 everywhere"),
        (lambda at: (at / "cfg.json").write_text("{"), "is not valid JSON"),
        (lambda at: (at / "cfg.json").write_text("[]"), "is not an object"),
        (lambda at: config(at, metadata=[{"hook_name": "x"}]), "metadata is of type list; it must be an object"),
        (lambda at: (at / "sparsity.safetensors").write_text("no"), "sparsity.safetensors is damaged"),
        (lambda at: os.truncate(at / "sae_weights.safetensors", 300), "is damaged"),
    ],
    "saelens_topk": [
        (lambda at: tensors(at, W_dec=torch.zeros(48, 16)), "divides by the norm of W_dec's rows, and one is 0"),
        (lambda at: config(at, k=49), "k is 49, but there are 48 latents"),
        (lambda at: config(at, k=None), "k is None, not a whole number above 0"),
        (lambda at: config(at, d_sae="many"), "d_sae is 'many', not a whole number"),
        (lambda at: config(at, architecture=["topk"]), r"of architecture \['topk'\], which cannot be said"),
        (lambda at: config(at, architecture="transcoder"), "of architecture 'transcoder', which cannot be said"),
        (lambda at: config(at, architecture="abstopk"), "of architecture 'abstopk', which cannot be said"),
        (lambda at: config(at, architecture="temporal"), "'temporal', which cannot be said here; standard, topk"),
        (lambda at: config(at, architecture="matching_pursuit"), "'matching_pursuit', which cannot be said"),
        (lambda at: config(at, normalize_activations="layer_norm"), "layer_norm, done anew for each row"),
        (lambda at: config(at, normalize_activations="expected_average_only_in"), "which the folder does not say"),
    ],
    "saelens_legacy": [
        (lambda at: config(at, activation_fn_str="tanh-relu"), "'standard with tanh-relu', which cannot be"),
        (
            lambda at: config(at, activation_fn_str="topk", activation_fn_kwargs=[5]),
            "activation_fn_kwargs is of type list; it must be an object",
        ),
    ],
    "saelens_checkpoint": [
        (lambda at: config(at, "activation_scaler.json", has_whitening=True), "were whitened"),
        (lambda at: config(at, "activation_scaler.json", scaling_factor=-1), "is -1, not a number above 0"),
        (lambda at: (at / "activation_scaler.json").write_text("[2]"), "activation_scaler.json is not an object"),
    ],
    "sparsify": [
        (lambda at: config(at, transcode=True), "transcode is True: it predicts another activation than it reads"),
        (lambda at: config(at, skip_connection=True), "skip_connection is True: it adds a linear map"),
        (lambda at: config(at, signed=True), "signed is True: it keeps codes below 0"),
        (lambda at: config(at, activation="groupmax"), "activation is 'groupmax'; only topk"),
        (lambda at: (at / "cfg.json").write_text("[5]"), "cfg.json is not an object"),
        (lambda at: (at / "metadata.json").write_text("[5]"), "metadata.json is not an object"),
        (lambda at: config(at, num_latents=24), r"\(encoder.weight\), where latent is 24, width is 16"),
    ],
    "dl_topk": [
        (lambda at: (at / "config.json").write_text("[5]"), "config.json is not an object"),
        (lambda at: config(at, "config.json", trainer="topk"), "trainer is the text 'topk'; it must be an object"),
        (lambda at: config(at, "config.json", buffer=["out"]), "buffer is of type list; it must be an object"),
        (lambda at: config(at, "config.json", metadata=["x"]), "metadata is of type list; it must be an object"),
        (lambda at: config(at, "config.json", trainer={"dict_class": ["x"]}), r"trainer.dict_class is \['x'\]; Auto"),
        (lambda at: config(at, "config.json", trainer={}), "trainer.dict_class is None; AutoEncoder, "),
        (
            lambda at: config(at, "config.json", trainer={"dict_class": "AutoEncoderTopK", "k": 9}),
            "trainer.k is 9, but",
        ),
        (lambda at: torch.save({"state": 1}, at / "ae.pt"), "state is a int, not a tensor"),
        (lambda at: torch.save([1], at / "ae.pt"), "holds a list, not tensors by name"),
        (lambda at: os.truncate(at / "ae.pt", 300), "is no file of tensors"),
    ],
    "gemma_scope": [
        (lambda at: np.savez(at / "params.npz", W_enc=np.zeros((4, 3))), "but such an SAE has W_dec"),
    ],
    "spindle": [
        (lambda at: torch.save({"enc.weight": torch.ones(2, 3)}, at), "holds enc.weight, which no known system does"),
        (lambda at: at.write_bytes(b"no archive"), "holds more than tensors|is no file of tensors"),
    ],
    "ghosttrack": [
        (lambda at: reheld(at, threshold=torch.tensor(-0.1)), "threshold must be one number, 0 or above"),
    ],
}
HARMS = [(name, harm, sentence) for name, harms in BROKEN.items() for harm, sentence in harms]


def reheld(path: Path, **changes: Tensor) -> None:
    held = torch.load(path, weights_only=True)
    torch.save({"model_state_dict": held["model_state_dict"] | changes}, path)


@pytest.mark.parametrize("name, harm, sentence", HARMS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(HARMS)])
def test_one_sentence_says_what_is_wrong(name: str, harm: Callable[[Path], Any], sentence: str, tmp_path: Path) -> None:
    source, _ = foreign.SOURCES[name](tmp_path / "source")
    read(source)
    harm(source)
    with pytest.raises(BadInput, match=sentence) as refusal:
        main(str(source), str(tmp_path / "out"))
    assert str(source) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_sae(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for source, sentence in (
        (tmp_path, "holds notes.txt, which is no SAE that is known here .SAELens: cfg.json, sae_weights"),
        (tmp_path / "notes.txt", "is no SAE that can be read here"),
        (tmp_path / "nothing.pt", "is missing"),
    ):
        with pytest.raises(BadInput, match=sentence):
            read(source)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    source, _ = foreign.dl_topk(tmp_path / "source")
    main(str(source), str(tmp_path / "out"))
    for target in ("out", "source", "source/ae.pt"):
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        with pytest.raises(BadInput, match="is there already, and nothing is written over"):
            main(str(source), str(tmp_path / target))
        assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    (tmp_path / "empty").mkdir()
    main(str(source), str(tmp_path / "empty"))
    with pytest.raises(BadInput, match="the format is 'onnx', not strata, saelens, sparsify"):
        main(str(source), str(tmp_path / "new"), "onnx")
    with pytest.raises(BadInput, match="says itself what its decoder ends in; leave out 'tanh'"):
        main(str(source), str(tmp_path / "new"), "strata", "tanh")


# --- the hub ---------------------------------------------------------------------------------------------------------


def cached(cache: Path, name: str = "saelens_topk") -> foreign.Forward:
    """A release in the hub's cache, as a download leaves it: blobs, and a snapshot of links named after the commit."""
    repo = cache / "models--someone--saes"
    source, forward = foreign.SOURCES[name](cache.parent / "made")
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}/layer_3/k5"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs/v1").write_text(COMMIT)
    for file in source.iterdir():
        (blob := repo / "blobs" / file.name).write_bytes(file.read_bytes())
        (repo / "snapshots" / COMMIT / "layer_3/k5" / file.name).symlink_to(blob)
    return forward


def test_a_release_of_the_hub_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = cached(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for number, revision in enumerate((COMMIT, "v1")):
        target = tmp_path / f"out-{number}"
        main(f"hub:someone/saes/layer_3/k5@{revision}", str(target))
        sae, config = disk.load(target)
        x = foreign.rows()
        assert (sae.reconstruct(x)[0] - forward(x)[1]).norm() / forward(x)[1].norm() < 1e-5
        origin = {"hub": "someone/saes", "folder": "layer_3/k5", "revision": COMMIT}
        assert config["metadata"]["imported_from"] == origin
    for source, sentence in (
        ("hub:someone/saes/layer_3/k5", "someone/saes must be pinned: add @ and a commit or tag"),
        ("hub:someone/saes/layer_3/k5@main", "must be pinned"),
        ("hub:saes@v1", "must be hub:OWNER/REPO/FOLDER@REVISION"),
        ("hub:someone/saes/../..@v1", "must be hub:OWNER/REPO/FOLDER@REVISION"),
        ("hub:someone/saes/layer_9@v1", "holds no SAE in layer_9"),
        ("hub:someone/other@v1", "someone/other at v1 could not be fetched: "),
    ):
        with pytest.raises(BadInput, match=sentence) as refusal:
            main(source, str(tmp_path / "not"))
        assert "\n" not in str(refusal.value) and not (tmp_path / "not").exists()


def test_a_hub_that_does_not_answer_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    source, _ = foreign.dl_topk(tmp_path / "source")
    there = {"HF_ENDPOINT": closed, "HF_TOKEN": "hf_none", "HF_HUB_CACHE": str(tmp_path / "hub")}
    run = convert(str(source), "hub:someone/saes/layer_3", "saelens", **there)
    assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
    assert "convert: someone/saes could not be read on the hub: " in run.stderr and "refused" in run.stderr
    with pytest.raises(BadInput, match="is written to its main branch; leave out @v1"):
        main(str(source), "hub:someone/saes@v1")


# --- the card --------------------------------------------------------------------------------------------------------

REPORT = {
    "test": {"fvu": 0.05518, "fvu_inlier": 0.0894, "l0": 80.587, "delta_ce": 0.442, "ce_recovered": None, "dead": 0.0},
    "controls": {"pca": {"fvu": 0.1156, "fvu_inlier": 0.1872, "l0": 80.0, "delta_ce": 1.681, "dead": None}},
    "rows": {"test": 15991},
}


def test_the_card_says_what_the_run_says(tmp_path: Path) -> None:
    source, _ = foreign.saelens_topk(tmp_path / "source")
    config(source, metadata={"sae_lens_version": "6.0.0", "model_name": "tiny/lm", "l0": 4.875, "context_size": 128})
    found = read(source)
    text = card.card(found, "saelens", REPORT, hub.place("hub:someone/saes/layer_3"))
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "saelens", "base_model": "tiny/lm", "tags": ["sparse-autoencoder"],
    }  # fmt: skip
    assert "license" not in text
    for line in (
        "| model | tiny/lm |",
        "| latents | 48 |",
        "| active where | k = 5 |",
        "| l0 | 4.875 |",
        "Measured on 15991 held-out rows, beside controls that must do worse.",
        "| | fvu | fvu_inlier | l0 | delta_ce | dead |",
        "| SAE | 0.05518 | 0.0894 | 80.59 | 0.442 | 0 |",
        "| pca | 0.1156 | 0.1872 | 80 | 1.681 |  |",
        "In the folder `layer_3` of `someone/saes`.",
        'sae = SAE.load_from_disk("layer_3")',
        'sae, config = disk.load(Path("layer_3"))',
    ):
        assert line in body, line
    assert "base_model" not in card.card(read(foreign.spindle(tmp_path / "s")[0]), "npz", None, None)


def test_the_card_finds_the_report_of_its_project(tmp_path: Path) -> None:
    source, _ = foreign.saelens_topk(tmp_path / "data/sae/9")
    main(str(source), str(tmp_path / "without"))
    (tmp_path / "reports/train").mkdir(parents=True)
    write_json(tmp_path / "reports/train/9.json", REPORT)
    main(str(source), str(tmp_path / "with"))
    main(str(tmp_path / "with"), str(tmp_path / "away"), "sparsify")
    assert "Measured" in (tmp_path / "with/README.md").read_text()
    assert "Measured" not in (tmp_path / "without/README.md").read_text()
    assert "SparseCoder.load_from_disk" in (tmp_path / "away/README.md").read_text()
