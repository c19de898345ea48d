"""SAE folders: what other tools read from them, by hand, and what is turned away."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.saelens_oracle import flips
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.sae import disk
from strata.sae.engine.nonlinearity import Nonlinearity
from strata.sae.sae import SAE
from strata.training.autoencoder import Autoencoder, Scale, fold
from strata.training.rules.base import Rule
from strata.training.rules.jumprelu import JumpReLU
from strata.training.rules.topk import TopK
from strata.training.training import with_threshold

WIDTH, LATENTS, ROWS, K = 12, 40, 64, 5
COMMON = {
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
}
TENSORS = {"W_enc": (WIDTH, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, WIDTH), "b_dec": (WIDTH,)}
KINDS = ("topk", "jumprelu", "batchtopk")


def rows() -> Tensor:
    return 3 * torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)) + 1


def made(kind: str) -> SAE:
    """A random SAE whose biases and thresholds all matter; batchtopk gets its threshold as training gives it."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    decoder = random(LATENTS, WIDTH)
    decoder /= decoder.norm(dim=1, keepdim=True)
    sae = SAE(random(LATENTS, WIDTH), random(LATENTS), decoder, random(WIDTH), k=K)
    if kind == "topk":
        return sae
    if kind == "batchtopk":
        return with_threshold(sae, K, lambda: [rows()])
    threshold = 8 * random(LATENTS)  # below 0 too: there only h > 0 cuts
    sae = SAE(sae.encoder, sae.b_enc, sae.decoder, sae.b_dec, threshold=threshold)
    if kind == "jumprelu":
        return sae
    assert kind in ("tanh", "sigmoid")
    return replace(sae, decoder_activation=kind, scale=0.3, mean=random(WIDTH))


def documented(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction by SAELens's documented formulas, from the two files alone."""
    config = json.loads((folder / "cfg.json").read_text())
    t = load_file(folder / "sae_weights.safetensors")
    h = (x - t["b_dec"] * config["apply_b_dec_to_input"]) @ t["W_enc"] + t["b_enc"]
    if config["architecture"] == "topk":
        values, latents = h.topk(config["k"], dim=-1)
        codes = torch.zeros_like(h).scatter(-1, latents, values.relu())
    else:
        codes = h.relu() * (h > t["threshold"])
    return codes, codes @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize("kind", ["tanh", "sigmoid"])
def test_another_ending_is_an_architecture_of_our_own(kind: str, tmp_path: Path):
    """So that SAELens, which looks the name up, refuses; the files say all that the function needs."""
    sae, x = made(kind), rows()
    disk.save(tmp_path, sae, {})
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == f"strata_jumprelu_{kind}"
    t = load_file(tmp_path / "sae_weights.safetensors")
    codes, output = documented(tmp_path, x)
    bent = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}[kind](config["scale"] * (output - t["mean"]))
    ours = sae.encode(x)
    torch.testing.assert_close(ours.pattern.dense(ours.values), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(ours), t["mean"] + bent / config["scale"], rtol=1e-5, atol=1e-5)
    assert sae.reconstruct(x)[0].equal(sae.decode(ours))
    for wrong in (None, 0, "1"):
        rewrite(tmp_path, scale=wrong)
        with pytest.raises(BadInput, match=f"cfg.json: scale is {wrong!r}, not a number above 0"):
            disk.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_formulas_give_our_codes(kind: str, tmp_path: Path):
    sae, x = made(kind), rows()
    disk.save(tmp_path, sae, {})
    codes, reconstruction = documented(tmp_path, x)
    ours = sae.encode(x)
    dense = ours.pattern.dense(ours.values)
    assert dense.gt(0).equal(codes.gt(0))
    assert 0 < ours.active().float().mean() < LATENTS / 2
    torch.testing.assert_close(dense, codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(ours), reconstruction, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_exactly_what_saelens_asks_for(kind: str, tmp_path: Path):
    """It refuses missing and extra tensors, and throws metadata without a version of its own away."""
    density = torch.linspace(0, 1, LATENTS)
    disk.save(tmp_path, made(kind), {"hook_name": "blocks.9.hook_resid_post"}, density)
    assert {path.name for path in tmp_path.iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }
    config = json.loads((tmp_path / "cfg.json").read_text())
    own = {"k": K, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}
    assert set(config) == COMMON | set(own)
    assert own.items() <= config.items()
    assert config["architecture"] == ("topk" if kind == "topk" else "jumprelu")
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (WIDTH, LATENTS, "float32")
    assert config["metadata"] == {"sae_lens_version": "6.0.0", "hook_name": "blocks.9.hook_resid_post"}
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    wanted = TENSORS if kind == "topk" else {**TENSORS, "threshold": (LATENTS,)}
    assert {name: tuple(t.shape) for name, t in tensors.items()} == wanted
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    sparsity = load_file(tmp_path / "sparsity.safetensors")
    assert list(sparsity) == ["sparsity"]
    torch.testing.assert_close(sparsity["sparsity"], torch.log10(density + 1e-10))


@pytest.mark.parametrize("kind", [*KINDS, "tanh", "sigmoid"])
def test_what_is_read_is_what_was_written(kind: str, tmp_path: Path):
    sae = made(kind)
    disk.save(tmp_path, sae, {"l0": 3.5})
    loaded, config = disk.load(tmp_path)
    assert loaded.settings() == sae.settings() and loaded.tensors().keys() == sae.tensors().keys()
    for name, tensor in sae.tensors().items():
        assert tensor.equal(loaded.tensors()[name]), name
    assert config["metadata"]["l0"] == 3.5
    assert disk.load(tmp_path)[0].encode(rows()).values.equal(sae.encode(rows()).values)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_repeat(kind: str, tmp_path: Path):
    for folder in ("a", "b"):
        disk.save(tmp_path / folder, made(kind), {"l0": 1.0, "model_name": "m"}, torch.full((LATENTS,), 0.1))
    for path in (tmp_path / "a").iterdir():
        assert sha256(path) == sha256(tmp_path / "b" / path.name), path.name


def test_an_encoder_that_does_not_subtract_the_bias_gives_the_same_codes(tmp_path: Path):
    """Half precision too, as other tools store it."""
    disk.save(tmp_path, made("jumprelu"), {})
    rewrite(tmp_path, apply_b_dec_to_input=False)
    tensors = {name: t.half() for name, t in load_file(tmp_path / "sae_weights.safetensors").items()}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    save_file({name: t.float() for name, t in tensors.items()}, rounded / "sae_weights.safetensors")
    (rounded / "cfg.json").write_text((tmp_path / "cfg.json").read_text())

    codes, reconstruction = documented(rounded, rows())
    sae, _ = disk.load(tmp_path)
    ours = sae.encode(rows())
    torch.testing.assert_close(ours.pattern.dense(ours.values), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(ours), reconstruction, rtol=1e-5, atol=1e-5)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change keys of cfg.json; None takes one out."""
    config = {**json.loads((folder / "cfg.json").read_text()), **changes}
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def retensor(folder: Path, **changes: Tensor) -> None:
    path = folder / "sae_weights.safetensors"
    save_file({**load_file(path), **changes}, path)


def folded(path: Path) -> None:
    """Put a folder in place of a file."""
    path.unlink()
    path.mkdir()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


BROKEN = {
    "cfg.json is missing": lambda folder: (folder / "cfg.json").unlink(),
    "cfg.json is not valid JSON": lambda folder: cut(folder / "cfg.json"),
    "d_sae is None, not a whole number": lambda folder: rewrite(folder, d_sae=None),
    "k is None, not a whole number": lambda folder: rewrite(folder, k=None),
    "k is 5.0, not a whole number": lambda folder: rewrite(folder, k=5.0),
    "k is 0, but": lambda folder: rewrite(folder, k=0),
    "k is 41, but there are 40 latents": lambda folder: rewrite(folder, k=LATENTS + 1),
    "cfg.json is not an object": lambda folder: (folder / "cfg.json").write_text("[]"),
    "architecture 'gated'": lambda folder: rewrite(folder, architecture="gated"),
    "architecture None": lambda folder: rewrite(folder, architecture=None),
    "normalisation at run time": lambda folder: rewrite(folder, normalize_activations="layer_norm"),
    "rescale_acts": lambda folder: rewrite(folder, rescale_acts_by_decoder_norm=True),
    "sae_weights.safetensors is missing": lambda folder: (folder / "sae_weights.safetensors").unlink(),
    "sae_weights.safetensors is damaged": lambda folder: cut(folder / "sae_weights.safetensors"),
    "sae_weights.safetensors is no file that can be read": lambda folder: folded(folder / "sae_weights.safetensors"),
    "architecture ['topk']": lambda folder: rewrite(folder, architecture=["topk"]),
    "metadata is of type list": lambda folder: rewrite(folder, metadata=["layer 3"]),
    "cfg.json asks for": lambda folder: rewrite(folder, d_in=WIDTH + 1),
    "(12, 40)": lambda folder: retensor(folder, threshold=torch.zeros(LATENTS)),  # topk has none
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_broken_folder_is_turned_away_with_one_sentence(sentence: str, tmp_path: Path):
    disk.save(tmp_path, made("topk"), {})
    BROKEN[sentence](tmp_path)
    with pytest.raises(BadInput) as refusal:
        disk.load(tmp_path)
    text = str(refusal.value)
    assert str(tmp_path) in text
    assert sentence.replace("rescale_acts", "normalisation") in text
    assert "\n" not in text


@pytest.mark.parametrize("ending", ["identity", "tanh", "sigmoid"])
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_folding_the_scale_in_leaves_the_function_alone(kind: str, ending: Nonlinearity):
    """Training sees y = s (x − μ); the folded SAE takes x, with codes smaller by s and the raw reconstruction."""
    generator = torch.Generator().manual_seed(3)
    model = Autoencoder(WIDTH, LATENTS, generator, decoder_activation=ending)
    rule: Rule = TopK(K)
    if kind == "jumprelu":
        rule = JumpReLU(K, LATENTS, bandwidth=0.2, coefficient=1.0)
        rule.threshold.data.copy_(2 * torch.rand(LATENTS, generator=generator))
    for parameter in (model.b_enc, model.b_dec, model.encoder):
        parameter.data += torch.randn(parameter.shape, generator=generator)
    scale, x = Scale(0.037, torch.randn(WIDTH, generator=generator), 1.0), 27 * rows()
    with torch.no_grad():
        run = model(scale.apply(x), rule, generator)
    folded = fold(model, rule, scale)
    found = folded.encode(x)
    assert (folded.k == K) == (kind == "topk")
    assert found.active().sum() > ROWS
    trained = run.pattern.dense(run.codes)
    torch.testing.assert_close(scale.factor * found.pattern.dense(found.values), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        folded.decode(found), (run.y - run.residual) / scale.factor + scale.mean, rtol=1e-4, atol=1e-2
    )
    torch.testing.assert_close(folded.decoder.norm(dim=1), torch.ones(LATENTS))


def test_the_comparison_with_saelens_tells_a_tie_from_a_mistake():
    """A latent on one side alone: near the cut that is rounding, far from it a fault. In units of the norm."""
    theirs = torch.tensor([[3.0, 0.0, 4.0], [3.0, 4.0, 0.0]])
    near = torch.tensor([[0.0, 3.00001, 4.0], [3.0, 4.0, 0.0]])
    flipped, distance = flips(near, theirs, None)
    assert flipped.tolist() == [[True, True, False], [False, False, False]]
    assert 0 < distance < 1e-5
    assert flips(theirs, theirs, None)[1] == 0
    far = torch.tensor([[3.5, 3.8, 0.0], [3.0, 4.0, 0.0]])
    assert flips(far, theirs, None)[1] == pytest.approx((4 - 3) / 5)
    lost = torch.tensor([[0.0, 0.0, 4.0], [3.0, 4.0, 0.0]])
    assert flips(lost, theirs, torch.tensor([1.0, -1.0, 1.0]))[1] == pytest.approx((3 - 1) / 5)
    assert flips(lost, theirs, torch.tensor([3.0, -1.0, 1.0]))[1] == 0
