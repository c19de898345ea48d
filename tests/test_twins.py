"""Twins: what is held at random stays so, all else is as in the SAE's own training, and margins are counted by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import yaml
from killing import Killed, survives
from test_extract import extract
from test_extract import knobs as extract_knobs
from test_train import TARGETS, hashes, knobs, stored

from strata.device.machine import CPU
from strata.lm.model import load
from strata.rows.shards import Activations, open_layer
from strata.run.door import BadInput
from strata.run.params import check
from strata.sae import disk
from strata.splicing.held_out import Predictions
from strata.training import training, update
from strata.training.autoencoder import Autoencoder
from strata.training.fit import Fitted
from strata.training.knobs import Train
from strata.training.trainer import Trainer
from strata.twins import margins as room
from strata.twins import random_model, twins
from strata.twins.knobs import Controls, barred
from strata.twins.read import read_twins, twin_folders
from strata.verdict.targets import Twin

ROWS = {"train": [0, 3000], "validation": [3000, 3400], "test": [3400, 4000]}
RULES: dict[str, dict[str, Any]] = {
    "topk": {}, "batchtopk": {}, "matryoshka": {"groups": [0.5, 1.0]}, "jumprelu": {}, "relu": {"l1_coefficient": 0.1},
    "reward": {"bandwidth": 0.1, "activity_cost": 0.003},
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> Activations:
    """Sparse sums of 64 atoms, on an offset."""
    random = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(64, 32, generator=random), dim=1)
    chosen = torch.rand(4000, 64, generator=random).topk(4, dim=1).indices
    return stored(torch.zeros(4000, 64).scatter(1, chosen, 1.0) @ atoms + 0.3, ROWS)


def train(rows: Activations, plan: Train, twin: Twin | None, work: Path | None = None, every: float = 60.0) -> Fitted:
    if twin is None:
        return training.train(rows, plan, TARGETS, 0)
    return twins.train_twin(twin, rows, plan, TARGETS, 0, work, every, CPU)


@pytest.fixture(params=["by_rows", "step_by_step"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The update by compiled loops, which a CPU takes, and the one of every other device."""
    monkeypatch.setattr(update, "by_rows", getattr(update, request.param))
    return request.param


@pytest.mark.parametrize("rule", RULES)
def test_a_frozen_decoder_stays_to_the_bit_and_the_rest_learns(rows: Activations, rule: str):
    plan = knobs(rule=rule, epochs=1, wake=0.01, auxk=0.1, weight_decay=0.01, init="data", **RULES[rule])
    fitted = train(rows, plan, "frozen_decoder")
    start = Autoencoder(32, 64, torch.Generator().manual_seed(0)).decoder.detach()
    for sae in fitted.saes.values():
        assert torch.equal(sae.decoder, start), "random directions, though train.init is data"
    best, untrained = fitted.best, fitted.untrained
    assert not torch.equal(best.encoder, untrained.encoder) and not torch.equal(best.b_dec, untrained.b_dec)


@pytest.mark.parametrize("rule", RULES)
def test_a_frozen_encoder_stays_to_the_bit_and_the_rest_learns(
    rows: Activations, rule: str, monkeypatch: pytest.MonkeyPatch
):
    started: list[torch.Tensor] = []
    real = Autoencoder.start

    def start(model: Autoencoder, *words: Any) -> None:
        real(model, *words)
        started.append(model.encoder.detach().clone())

    monkeypatch.setattr(Autoencoder, "start", start)
    fitted = train(rows, knobs(rule=rule, epochs=1, wake=0.01, weight_decay=0.01, **RULES[rule]), "frozen_encoder")
    best, untrained = fitted.best, fitted.untrained
    assert torch.equal(best.encoder, started[0])
    torch.testing.assert_close(torch.nn.functional.normalize(best.encoder, dim=1), untrained.encoder)
    assert not torch.equal(best.decoder, untrained.decoder)
    learned = best.threshold if rule in ("jumprelu", "reward") else best.b_enc
    assert learned is not None and learned.std() > 1e-4


def test_a_decoder_near_random_keeps_its_cosine(rows: Activations, path: str, monkeypatch: pytest.MonkeyPatch):
    assert update.NEAR == 0.8
    monkeypatch.setattr(update, "NEAR", 0.99)  # so that few steps reach the edge
    plan = knobs(rule="topk", epochs=2)
    free, fitted = train(rows, plan, None), train(rows, plan, "near_random_decoder")
    cosine = torch.linalg.vecdot(fitted.best.decoder, fitted.untrained.decoder)
    assert cosine.min() >= update.NEAR - 1e-6
    assert (cosine < update.NEAR + 1e-4).any(), "some row would have gone further"
    assert torch.linalg.vecdot(free.best.decoder, free.untrained.decoder).min() < update.NEAR
    torch.testing.assert_close(fitted.best.decoder.norm(dim=1), torch.ones(64), rtol=0, atol=1e-4)


def test_rows_are_brought_back_to_their_cone_by_hand():
    anchor = torch.tensor([[1.0, 0]] * 4)
    decoder = torch.tensor([[0, 1], [0.9, 0.19**0.5], [-0.6, -0.8], [0.8, 0.6]])
    update.bring_near(decoder, anchor)
    expected = torch.tensor([[0.8, 0.6], [0.9, 0.19**0.5], [0.8, -0.6], [0.8, 0.6]])
    torch.testing.assert_close(decoder, expected)


def test_a_twin_sees_the_batches_of_its_sae(rows: Activations, monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Tensor] = []
    real = Trainer.advance

    def advance(trainer: Trainer, y: torch.Tensor) -> Any:
        seen.append(y.clone())
        return real(trainer, y)

    monkeypatch.setattr(Trainer, "advance", advance)
    batches = []
    for twin in (None, "frozen_decoder", "frozen_encoder", "near_random_decoder"):
        seen.clear()
        fitted = train(rows, knobs(epochs=1), twin)
        batches.append(torch.stack(seen))
        l0 = fitted.best.encode(rows.read(3000, 3400).float()).active().float().mean()
        assert l0 == pytest.approx(4, abs=0.05), "equal l0, too"
    assert all(torch.equal(batches[0], other) for other in batches[1:])


@pytest.mark.parametrize("twin", ["frozen_decoder", "frozen_encoder", "near_random_decoder"])
def test_a_killed_twin_ends_with_the_same_bytes(rows: Activations, twin: Twin, tmp_path: Path):
    plan = knobs(epochs=1, log_every=1)
    whole = train(rows, plan, twin)
    for steps in (1, 4):  # each attempt gets some steps further
        with pytest.MonkeyPatch.context() as killing, pytest.raises(Killed):
            survives(killing, Trainer, "advance", steps)
            train(rows, plan, twin, tmp_path / "work", 0.0)
    pieces = train(rows, plan, twin, tmp_path / "work", 0.0)
    assert pieces.history == whole.history
    assert hashes(pieces, tmp_path / "pieces") == hashes(whole, tmp_path / "whole")


def test_which_twins_there_can_be():
    assert all(barred(twin, knobs()) is None for twin in ("frozen_decoder", "frozen_encoder", "near_random_decoder"))
    assert barred("frozen_encoder", knobs(rule="gated")) == "rule gated scales the encoder"
    assert barred("frozen_decoder", knobs(rule="gated")) is None
    given = {"file": "w.npz", "sha256": "x", "frozen": False}
    assert "train.encoder says" in str(barred("frozen_decoder", knobs(encoder=given)))
    assert "resample_every" in str(barred("near_random_decoder", knobs(resample_every=1)))
    assert "was given" in str(barred("random_model", knobs(**{"from": {"folder": "x", "sha256": "y"}})))
    section = {"run": True, "layers": None, "twins": ["frozen_decoder"]}
    for change, sentence in (
        ({"twins": []}, "twins is []"),
        ({"twins": ["frozen_decodr"]}, "did you mean frozen_decoder"),
        ({"twins": ["frozen_decoder"] * 2}, "there twice"),
        ({"layers": [-1]}, "layers.0 is -1"),
    ):
        with pytest.raises(BadInput) as refusal:
            check({**section, **change}, Controls, "params.yaml: controls")
        assert sentence in str(refusal.value)


# --- margins --------------------------------------------------------------------------------------------------------


def shifted(by: float) -> Any:
    """A reconstructor that misses each number by ``by``; of a row's width, as many latents are active."""
    return lambda x: (x + by, torch.full((len(x),), x.shape[1]))


def test_margins_of_rows_by_hand():
    """Two documents of two rows each. x̂ − x is 0.5 or 1 in both numbers, so that ‖x − x̂‖² is 0.5 or 2 a row."""
    x = torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 2]])
    activations = stored(x, {"train": [0, 4], "validation": [0, 0], "test": [0, 4]})
    activations.meta["median_norm"] = 1.0  # an outlier has a norm above 3: none
    candidates = {"sae": shifted(0.5), "twin": shifted(1.0)}
    values = room.of_rows(candidates, activations, np.array([4, 4, 7, 7]), np.random.default_rng(0), CPU)
    variance = 10 - (3**2 + 3**2) / 4  # Σ‖x‖² − ‖Σx‖² / rows
    assert values["sae"]["fvu"][0] == pytest.approx(4 * 0.5 / variance)
    assert values["twin"]["mse"][0] == pytest.approx(activations.scale**2 * 4 * 2 / (4 * 2))
    found = room.margins(values["sae"], values["twin"])
    assert set(found) == {"mse", "fvu", "fvu_inlier", "cosine"}
    assert found["fvu"]["value"] == pytest.approx(4 * 1.5 / variance)

    # A draw has both documents, or one of them twice, with a variance of 4 - 8/4 or of 16 - 32/4.
    drawn = values["twin"]["fvu"] - values["sae"]["fvu"]
    assert {round(float(value), 6) for value in drawn} == {3.0, 0.75, round(4 * 1.5 / variance, 6)}
    assert found["fvu"]["low"] == pytest.approx(0.75) and found["fvu"]["high"] == pytest.approx(3.0)

    same = room.margins(values["sae"], values["sae"])
    assert same["fvu"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_outliers_count_for_fvu_alone():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 90]])
    activations = stored(x, {"train": [0, 4], "validation": [0, 0], "test": [0, 4]})
    activations.meta["median_norm"] = 1.0
    values = room.of_rows({"sae": shifted(0.5)}, activations, np.zeros(4, int), np.random.default_rng(0), CPU)["sae"]
    inlier_variance = 4 - (2**2 + 2**2) / 3
    assert values["fvu_inlier"][0] == pytest.approx(3 * 0.5 / inlier_variance)
    assert values["fvu"][0] < 0.01


def test_margins_of_predictions_by_hand():
    """Three documents; ce of the SAE is 0.1 above the model's own on each token, of the twin 0.3; zeros cost 1."""
    document, clean = np.array([1, 1, 5, 9]), torch.tensor([1.0, 2, 3, 4])

    def losses(extra: float, kl: float) -> torch.Tensor:
        return torch.stack([clean + extra, torch.full((4,), kl)], 1)

    predictions = Predictions(
        document,
        {
            "clean": losses(0, 0), "zero": losses(1, 1), "mean": losses(0.5, 1),
            "sae": losses(0.1, 0.2), "twin": losses(0.3, 0.7),
        },
    )  # fmt: skip
    values = room.of_predictions(predictions, ["sae", "twin"], np.random.default_rng(0))
    found = room.margins(values["sae"], values["twin"])
    for name, value in {
        "delta_ce": 0.2,
        "kl": 0.5,
        "ce_sae": 0.2,
        "ce_recovered": 0.2,
        "ce_recovered_mean": 0.4,
    }.items():
        assert found[name] == pytest.approx({"value": value, "low": value, "high": value}, abs=1e-6), name
    assert room.margins(values["twin"], values["sae"])["ce_recovered"]["high"] == pytest.approx(-0.2, abs=1e-6)


def test_many_documents_are_drawn_in_groups_of_neighbours():
    groups = room.Groups.by(np.repeat(np.arange(5000), 2))
    assert groups.count == room.GROUPS and groups.of[:20].tolist() == [0] * 10 + [1] * 10
    draws = groups.draws(np.random.default_rng(0))
    assert (draws[0] == 1).all() and (draws.sum(1) == room.GROUPS).all()


# --- the random model -----------------------------------------------------------------------------------------------


def test_a_random_model_has_the_shape_and_spread_of_the_real_one(gpt2: Path, tmp_path: Path):
    layer, section = 1, extract_knobs(tokens=300)
    folder = extract(tmp_path / "real", gpt2, [layer], section)
    real, contexts = open_layer(folder / str(layer), folder / "tokens")
    lm = load(gpt2, torch.float32, CPU)
    before = {name: parameter.clone() for name, parameter in lm.model.named_parameters()}
    found = random_model.activations(lm, contexts, real, section, 3, tmp_path / "random")
    for name, parameter in lm.model.named_parameters():
        old = before[name]
        assert torch.equal(parameter, old) is (parameter.dim() < 2), name
        if parameter.dim() > 1:
            torch.testing.assert_close(parameter.std(), old.std(), rtol=0.1, atol=0.01)
    assert (found.rows, found.width, found.layer) == (real.rows, real.width, layer)
    assert not torch.equal(found.read(0, 50), real.read(0, 50))

    again = random_model.activations(load(gpt2, torch.float32, CPU), contexts, real, section, 3, tmp_path / "again")
    assert torch.equal(found.read(0, found.rows), again.read(0, found.rows)), "the same weights for the same seed"
    fitted = train(found, knobs(epochs=1, batch_size=32), "random_model")
    result, frequency = twins.measure_elsewhere(fitted.best, found, contexts)
    assert result["margin"] == {} and result["test"]["delta_ce"] is None and 0 < result["test"]["fvu"] < 2
    assert result["test"]["dead"] == float((frequency == 0).double().mean())


# --- the stage ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Vectors of three topics, as far as the report, with three twins."""
    folder = tmp_path_factory.mktemp("twins")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small.make(folder)
        small.of_vectors()
        small.change(
            train__epochs=2,
            invert__run=False,
            steer_eval__run=False,
            train__init="kaiming",
            merge__run=False,
            cluster__run=False,
            interpret__run=False,
        )
        small.change(controls={"run": True, "layers": None, "twins": ["frozen_decoder", "frozen_encoder"]})
        small.change(
            targets={"enforce": False, "fvu_inlier": {"beats": {"frozen_decoder": 0.0, "frozen_encoder": 9.0}}}
        )
        small.run()
        yield folder


def test_twins_stand_beside_the_sae_everywhere(project: Path):
    found = read_twins(Path("reports/controls/0.json"))
    assert found is not None and set(found.twins) == {"frozen_decoder", "frozen_encoder"} and not found.left_out
    sae = json.loads(Path("reports/train/0.json").read_text())["test"]
    summary = json.loads(Path("reports/summary.json").read_text())
    for name, twin in found.twins.items():
        assert set(twin.test) == set(sae)
        assert twin.margin["fvu"].value == pytest.approx((twin.test["fvu"] or 0) - sae["fvu"], abs=1e-9)
        assert summary[f"controls.0.{name}.fvu"] == twin.test["fvu"]
        assert summary[f"controls.0.{name}.margin.fvu"] == twin.margin["fvu"].value
        ours, config = disk.load(twin_folders(Path("data/controls/0"))[name])
        assert config["metadata"]["twin"] == name and ours.latents == 32
    probing = json.loads(Path("reports/evaluate/0.json").read_text())["probing"]
    assert {"frozen_decoder", "frozen_encoder"} <= set(probing["controls"])
    assert set(probing["controls"]["frozen_decoder"]) == set(probing["sae"])
    page = Path("reports/report.html").read_text()
    assert page.count("frozen decoder") >= 3 and page.count("frozen encoder") >= 3


def test_a_target_with_a_margin_fails_in_the_scorecard(project: Path):
    card = json.loads(Path("reports/scorecard.json").read_text())
    assert card["targets"] == [], "beats alone asks for no bound"
    lines = {line["twin"]: line for line in card["margins"]}
    assert lines["frozen_encoder"]["pass"] is False and card["failed"] >= 1
    assert lines["frozen_encoder"]["margin"] == pytest.approx(
        lines["frozen_encoder"]["value"] - lines["frozen_encoder"]["sae"], abs=1e-9
    )
    assert card["verdict"].startswith(f"{card['passed']} of 2 targets; fvu_inlier of layer 0: ")
    assert "fvu_inlier beats frozen_encoder by" in Path("reports/report.html").read_text()


def test_what_cannot_be_is_left_out_or_refused(project: Path, capsys: pytest.CaptureFixture[str]):
    values = yaml.safe_load(Path("params.yaml").read_text())
    try:
        small.change(train__rule="gated")
        with pytest.raises(BadInput, match="beats names frozen_encoder, but there can be none: rule gated scales"):
            small.run("select")
        small.change(train__rule="topk", controls__twins=["frozen_decoder"])
        with pytest.raises(BadInput, match=r"names frozen_encoder, but controls.twins is \['frozen_decoder'\]"):
            small.run("select")
        small.change(controls__run=False)
        with pytest.raises(BadInput, match="names frozen_decoder, but controls trains none in this run"):
            small.run("select")

        small.run("controls", "evaluate")
        assert read_twins(Path("reports/controls/0.json")) is None and not twin_folders(Path("data/controls/0"))
        capsys.readouterr()
        small.change(controls={"run": True, "layers": None, "twins": ["frozen_encoder", "random_model"]})
        small.change(train__rule="gated")
        small.run("controls")
        found = read_twins(Path("reports/controls/0.json"))
        assert found is not None and found.left_out == {
            "frozen_encoder": "rule gated scales the encoder",
            "random_model": "there is no language model to draw the weights of",
        }
        assert "controls: layer 0 has no frozen_encoder: rule gated scales the encoder" in capsys.readouterr().err
    finally:
        Path("params.yaml").write_text(yaml.safe_dump(values))


def test_the_stage_goes_on_after_a_kill(project: Path):
    with pytest.MonkeyPatch.context() as counting:
        all_steps = survives(counting, Trainer, "advance", 10_000)
        small.run("controls")
    report = Path("reports/controls/0.json")
    whole = report.read_bytes()
    report.unlink()
    with pytest.MonkeyPatch.context() as killing, pytest.raises(Killed):
        survives(killing, twins, "train_twin", 1)
        small.run("controls")
    assert not report.exists()
    with pytest.MonkeyPatch.context() as counting:
        steps = survives(counting, Trainer, "advance", 10_000)
        small.run("controls")
    assert report.read_bytes() == whole and not list(Path(".scratch").glob("controls-*"))
    assert 0 < 2 * len(steps) == len(all_steps), "the first twin was not trained again"
