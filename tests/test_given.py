"""An encoder that the user brings: training begins with it, and a frozen one is the same to the bit afterwards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import ATOMS, TARGETS, WIDTH, knobs, planted

from strata.formats import npz
from strata.measure.quality import reconstruction
from strata.rows.shards import Activations
from strata.run import params
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.sae.sae import SAE
from strata.training import training
from strata.training.autoencoder import Scale
from strata.training.fit import STATE

__all__ = ["planted"]  # the fixture


def fvu(sae: SAE, rows: Activations) -> float:
    return reconstruction(sae.reconstruct, rows.blocks(*rows.split("test")), rows.scale, rows.median_norm)["fvu"]


@pytest.fixture(scope="module")
def trained(planted: Activations, tmp_path_factory: pytest.TempPathFactory) -> tuple[SAE, Path]:
    """An SAE and its encoder.npz."""
    folder = tmp_path_factory.mktemp("given")
    fitted = training.train(planted, knobs(rule="topk"), TARGETS, 0)
    npz.save(folder, fitted.best, {})
    return fitted.best, folder / npz.ENCODER


def given(path: Path, frozen: bool = False, **changes: Any) -> Any:
    encoder = {"file": str(path), "sha256": sha256(path), "frozen": frozen}
    return knobs(**{"rule": "topk", "epochs": 1, **changes}, encoder=encoder)


def test_training_begins_with_it(planted: Activations, trained: tuple[SAE, Path]) -> None:
    sae, path = trained
    start = training.train(planted, given(path), TARGETS, 1).untrained
    assert torch.equal(start.encoder, sae.encoder)
    x = planted.read(0, 200).float()
    ours, theirs = (start.encode(x), sae.encode(x))
    found, expected = (codes.pattern.dense(codes.values) for codes in (ours, theirs))
    assert torch.allclose(found, expected, atol=1e-4), "biases are those of the training scale"
    fitted = training.train(planted, knobs(rule="topk", epochs=1), TARGETS, 1)
    assert fvu(start, planted) < 0.6 * fvu(fitted.untrained, planted)
    warm = training.train(planted, given(path), TARGETS, 1)
    assert fvu(warm.best, planted) < fvu(fitted.best, planted)
    assert not torch.equal(warm.best.encoder, sae.encoder)


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu", "relu", "matryoshka", "reward"])
def test_a_frozen_encoder_is_the_same_to_the_bit(planted: Activations, trained: tuple[SAE, Path], rule: str) -> None:
    sae, path = trained
    settings = given(path, True, rule=rule, micro_batches=2 if rule == "topk" else 1, epochs=2)
    fitted = training.train(planted, settings, TARGETS, 1)
    for found in fitted.saes.values():
        assert torch.equal(found.encoder, sae.encoder) and not torch.equal(found.decoder, fitted.untrained.decoder)
    npz.save(path.parent / rule, fitted.best, {})
    before, after = np.load(path), np.load(path.parent / rule / npz.ENCODER)
    assert np.array_equal(before["W"], after["W"]) and np.abs(before["b"] - after["b"]).max() < 1e-5
    assert not np.array_equal(np.load(path.parent / npz.DECODER)["W"], np.load(path.parent / rule / npz.DECODER)["W"])
    assert fvu(fitted.best, planted) < fvu(fitted.untrained, planted)


def test_a_frozen_encoder_of_any_length_is_decoded(planted: Activations, trained: tuple[SAE, Path]) -> None:
    """Codes three times as long need directions a third as long: as good, which rows of norm 1 could not be."""
    _, path = trained
    arrays = dict(np.load(path))
    other = path.parent / "longer.npz"
    np.savez(other, W=3 * arrays["W"], b=3 * arrays["b"])
    fitted = training.train(planted, given(other, True, epochs=6, lr=0.02), TARGETS, 1)
    assert fvu(fitted.best, planted) < 0.1
    norms = fitted.best.decoder.norm(dim=1)
    assert 0.2 < float(norms.median()) < 0.5


def test_the_bias_of_a_frozen_encoder_is_trained_by_nothing(planted: Activations, trained: tuple[SAE, Path]) -> None:
    """Not by the penalty, nor by what wakes dead latents: with one that never fires, both would like to."""
    _, path = trained
    arrays = dict(np.load(path))
    arrays["b"][7] = -100
    other = path.parent / "dead.npz"
    np.savez(other, **arrays)
    fitted = training.train(planted, given(other, True, wake=0.1, dead_after=0.1, auxk_latents=8), TARGETS, 1)
    npz.save(path.parent / "dead", fitted.best, {})
    after = np.load(path.parent / "dead" / npz.ENCODER)
    assert after["b"][7] == pytest.approx(-100) and np.array_equal(after["W"], arrays["W"])


def test_twice_and_after_a_kill_the_same_bytes(planted: Activations, trained: tuple[SAE, Path], tmp_path: Path) -> None:
    settings = given(trained[1], True, epochs=2)
    whole = training.train(planted, settings, TARGETS, 1)

    class Killed(Exception):
        pass

    def kill(step: int, values: dict[str, float]) -> None:
        if step > 90:
            raise Killed

    with pytest.raises(Killed):
        training.train(planted, settings, TARGETS, 1, kill, work=tmp_path, save_every=0)
    again = training.train(planted, settings, TARGETS, 1, work=tmp_path)
    state = load_file(tmp_path / STATE)  # what was trained, on the training scale
    rows, bias = training.given(settings.encoder, (ATOMS, WIDTH), Scale.of(planted))
    assert torch.equal(state["model.encoder"], rows) and torch.equal(state["model.b_enc"], bias)
    for name, tensor in whole.best.tensors().items():
        assert torch.equal(tensor, again.best.tensors()[name])


def test_the_file_may_be_in_the_users_home(
    planted: Activations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(ATOMS, WIDTH, generator=torch.Generator().manual_seed(0))
    npz.save(tmp_path, SAE(rows, torch.zeros(ATOMS), rows, torch.zeros(WIDTH), k=2), {})
    monkeypatch.setenv("HOME", str(tmp_path))
    begun = given(tmp_path / npz.ENCODER).encoder.model_copy(update={"file": f"~/{npz.ENCODER}"})
    assert torch.equal(training.given(begun, (ATOMS, WIDTH), Scale.of(planted))[0], rows)
    with pytest.raises(BadInput, match=r"train\.encoder names ~nobody/x\.npz, which is no file"):
        training.given(begun.model_copy(update={"file": "~nobody/x.npz"}), (ATOMS, WIDTH), Scale.of(planted))


def test_what_cannot_be_begun_with(planted: Activations, trained: tuple[SAE, Path], tmp_path: Path) -> None:
    _, path = trained
    pin = sha256(path)

    def refused(why: str, **changes: Any) -> None:
        with pytest.raises(BadInput, match=why):
            training.train(planted, knobs(**{"rule": "topk", **changes}), TARGETS, 0)

    refused("nowhere.npz, which is no file", encoder={"file": str(tmp_path / "nowhere.npz"), "sha256": pin})
    refused(f"must be that of .*encoder.npz, which is {pin}", encoder={"file": str(path), "sha256": "0"})
    refused(
        f"{ATOMS} latents of width {WIDTH}, but train.latents is 32",
        latents=32,
        encoder={"file": str(path), "sha256": pin},
    )
    frozen = {"file": str(path), "sha256": pin, "frozen": True}
    with pytest.raises(BadInput, match="gated scales the encoder"):
        knobs(rule="gated", encoder=frozen)
    with pytest.raises(BadInput, match="replaces rows of the encoder"):
        knobs(resample_every=1, encoder=frozen)
    assert params.read()["train"]["encoder"] is None
