"""Training: one loop, shuffled rows, the same bytes for the same seed; controls and results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_extract import extract
from test_extract import knobs as extract_knobs

from stages.train import judge as room
from stages.train.read import COLUMNS
from strata.lm.model import load
from strata.measure import controls
from strata.measure.quality import reconstruction
from strata.rows.batches import CHUNK, Shuffled, shortened
from strata.rows.shards import Activations, open_activations, open_contexts, open_layer
from strata.rows.size import Size
from strata.run import params
from strata.run.door import BadInput
from strata.run.files import sha256, write_json
from strata.run.params import check
from strata.sae import disk
from strata.sae.sae import SAE
from strata.splicing import splice
from strata.training import training
from strata.training.autoencoder import Autoencoder, Scale
from strata.training.fit import STATE, Fitted
from strata.training.knobs import Train, knobs_of
from strata.training.trainer import learning_rate
from strata.verdict.targets import Targets

WIDTH, ATOMS = 32, 64
MEASURED = {"mse", "fvu", "fvu_inlier", "l0", "cosine", "dead", *splice.METRICS}
TARGETS = check({"enforce": False, "l0": {"min": 2, "max": 8}, "dead": {"max": 0.1}}, Targets, "targets")
SIZE = Size("language", 128_000, 640)


def knobs(**changes: Any) -> Train:
    small = {"latents": ATOMS, "k": 4, "epochs": 4, "batch_size": 256, "window_rows": 4096, "bandwidth": 0.3}
    return knobs_of(params.read()["train"], {}, {**small, **changes}, 0, SIZE)


def stored(x: torch.Tensor, splits: dict[str, list[int]]) -> Activations:
    """Activations in memory, as the reader would map them."""
    train = x[slice(*splits["train"])].double()
    meta = {
        "rows": len(x), "width": x.shape[1], "layer": 0, "splits": splits, "shard_rows": 5000,
        "scale": float((x.shape[1] / train.square().sum(1).mean()).sqrt()),
        "median_norm": float(train.norm(dim=1).median()),
        "mean": train.mean(0).tolist(),
    }  # fmt: skip
    return Activations(Path("memory"), meta, list(x.bfloat16().split(5000)))


@pytest.fixture(scope="module")
def planted() -> Activations:
    """4 of 64 unit atoms a row, on an offset: a dictionary that can be found."""
    random = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(ATOMS, WIDTH, generator=random), dim=1)
    chosen = torch.rand(24_000, ATOMS, generator=random).topk(4, dim=1).indices
    codes = torch.zeros(24_000, ATOMS).scatter(1, chosen, 1 + torch.rand(24_000, 4, generator=random))
    return stored(codes @ atoms + 0.3, {"train": [0, 20_000], "validation": [20_000, 22_000], "test": [22_000, 24_000]})


def test_every_row_at_most_once_an_epoch_and_mixed(planted: Activations):
    rows = torch.arange(10_000, dtype=torch.float32)[:, None].expand(-1, 2)
    numbered = stored(rows, {"train": [100, 9_900], "validation": [0, 0], "test": [0, 0]})
    numbered.shards[:] = [rows[:5000], rows[5000:]]  # float32 here, so that a row's number survives
    for window in (10_000, 2 * CHUNK * 8):
        batches = Shuffled(numbered, 100, 9_900, batch=64, window=window, seed=3)
        epochs = [torch.cat(list(batches.epoch(number)))[:, 0] for number in (0, 1)]
        for seen in epochs:
            assert len(seen) == batches.steps_per_epoch() * 64
            assert len(seen.unique()) == len(seen) >= 9_800 - 64
            assert seen.min() >= 100 and seen.max() < 9_900
            neighbours = float((seen.diff().abs() == 1).float().mean())
            assert neighbours < 0.02
        assert not torch.equal(*epochs)
        again = torch.cat(list(Shuffled(numbered, 100, 9_900, 64, window, 3).epoch(0)))[:, 0]
        assert torch.equal(epochs[0], again)


FOUND = {
    "topk": {},
    "batchtopk": {},
    "matryoshka": {"groups": [0.5, 1.0]},
    "jumprelu": {},
    "relu": {"l1_coefficient": 0.1},
    "gated": {"l1_coefficient": 0.1},
    "reward": {"bandwidth": 0.1, "activity_cost": 0.003},
}
FREE = ("relu", "gated", "reward")  # their l0 is up to the coefficient


@pytest.mark.parametrize("rule", FOUND)
def test_training_finds_a_planted_dictionary_the_same_one_each_time(planted: Activations, rule: str, tmp_path: Path):
    plan = knobs(rule=rule, **FOUND[rule])
    fitted = training.train(planted, plan, TARGETS, 0)

    def fvu(reconstruct):
        return reconstruction(reconstruct, planted.blocks(*planted.split("test")), planted.scale, planted.median_norm)

    ours = fvu(fitted.best.reconstruct)
    pca = fvu(controls.pca(planted.blocks(*planted.split("train")), planted.mean, 4))
    assert ours["fvu"] < 0.35 < 0.6 < pca["fvu"]
    assert ours["fvu"] < fvu(fitted.untrained.reconstruct)["fvu"] / 2
    if rule not in FREE:
        assert ours["l0"] == pytest.approx(4, rel=0.1)
    norms = fitted.best.decoder.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(ATOMS), rtol=0, atol=1e-4)
    if rule in ("jumprelu", "reward"):
        assert fitted.best.threshold is not None and fitted.best.threshold.std() > 1e-3  # learned, each its own

    again = training.train(planted, plan, TARGETS, 0)
    other = training.train(planted, knobs(rule=rule, epochs=1), TARGETS, 1)
    for name, sae in (("one", fitted.best), ("two", again.best), ("other", other.best)):
        disk.save(tmp_path / name, sae, {})
    one, two, third = (sha256(tmp_path / name / "sae_weights.safetensors") for name in ("one", "two", "other"))
    assert one == two != third


class Killed(BaseException):
    """Stands for a kill where the process must live on to look at what is left."""


def hashes(fitted: Fitted, folder: Path) -> dict[str, str]:
    for name, sae in fitted.saes.items():
        disk.save(folder / name, sae, {})
    return {name: sha256(folder / name / "sae_weights.safetensors") for name in fitted.saes}


@pytest.mark.parametrize("rule", FOUND)
def test_stopped_anywhere_it_ends_with_the_same_bytes(planted: Activations, rule: str, tmp_path: Path):
    """Stopped again and again, at logged steps in and between epochs, with a state after every step or every few."""
    plan = knobs(rule=rule, epochs=2, keep_every=1, resample_every=1, log_every=1, **FOUND[rule])
    whole = training.train(planted, plan, TARGETS, 0)
    work = tmp_path / "work"
    work.mkdir()
    stops = iter([3, 77, 78, 79, 120])
    stop = next(stops)

    def watch(step: int, values: dict[str, float]) -> None:
        if step == stop:
            raise Killed

    while True:
        try:
            pieces = training.train(planted, plan, TARGETS, 0, watch, work, save_every=0.0 if stop % 2 else 0.05)
            break
        except Killed:
            stop = next(stops, 0)
    assert stop == 0
    assert hashes(pieces, tmp_path / "pieces") == hashes(whole, tmp_path / "whole")
    assert pieces.history == whole.history and pieces.best_step == whole.best_step


@pytest.mark.parametrize("ending", ["tanh", "sigmoid"])
def test_a_bounded_decoder(planted: Activations, ending: str, tmp_path: Path):
    """It learns what it can reach, and goes on with the same bytes."""
    plan = knobs(rule="topk", decoder_activation=ending, epochs=2)
    whole = training.train(planted, plan, TARGETS, 0, work=tmp_path)
    again = training.train(planted, plan, TARGETS, 0, work=tmp_path)  # from the last state
    assert hashes(again, tmp_path / "again") == hashes(whole, tmp_path / "whole")
    x = planted.read(*planted.split("test")).float()
    y = Scale.of(planted).apply(x)
    output = Scale.of(planted).apply(again.best.reconstruct(x)[0])
    low, high = (-1, 1) if ending == "tanh" else (0, 1)
    assert low - 1e-5 <= output.min() < output.max() <= high + 1e-5
    best = (y.clamp(low, high) - y).square().sum()
    assert best < (output - y).square().sum() < (best + y.square().sum()) / 2


def test_nan_stops_training_with_the_step_and_keeps_the_last_state(planted: Activations, tmp_path: Path):
    splits = {"train": [0, 2000], "validation": [2000, 2500], "test": [2500, 3000]}
    broken = stored(planted.read(0, 3000).float(), splits)
    broken.shards[0][700] = float("nan")
    for rule in ("batchtopk", "topk"):
        with pytest.raises(BadInput, match=r"training diverged at step [0-7]: the loss is nan; lower train.lr"):
            training.train(broken, knobs(rule=rule), TARGETS, 0)
    whole = stored(planted.read(0, 3000).float(), splits)
    work = tmp_path / "work"
    work.mkdir()

    def poison(step: int, values: dict[str, float]) -> None:
        if step == 9:
            whole.shards[0][:2000] = float("nan")

    with pytest.raises(BadInput, match=r"training diverged at step 14: the loss is nan"):
        training.train(whole, knobs(log_every=1), TARGETS, 0, poison, work, 0.0)  # the window was read before
    assert load_file(work / STATE)["counts"].tolist() == [14, 14 * 256]


def test_a_far_too_large_learning_rate_is_divergence_not_a_result(planted: Activations):
    with pytest.raises(BadInput, match=r"training diverged at step \d+: the error is \d+ × variance; lower train.lr"):
        training.train(planted, knobs(lr=1e3), TARGETS, 0)


def test_raising_the_cost_of_activity_lowers_l0(planted: Activations):
    """The gradient of the reward is a real one: from 0 to λ to 10 λ, each takes a fifth at least."""
    l0 = []
    for cost in (0.0, 0.03, 0.3):
        plan = knobs(rule="reward", bandwidth=0.1, activity_cost=cost, lr=0.01)
        fitted = training.train(planted, plan, TARGETS, 0)
        l0.append(fitted.history[-1]["validation_l0"])
    assert l0[1] < 0.8 * l0[0] and l0[2] < 0.8 * l0[1], l0


def test_dead_latents_wake(planted: Activations):
    """Twice as many latents as there are atoms: the surplus fires, if rarely."""
    dead = {}
    for wake in (0.0, 0.02):
        plan = knobs(rule="topk", latents=2 * ATOMS, dead_after=0.1, wake=wake)
        fitted = training.train(planted, plan, TARGETS, 0)
        dead[wake] = fitted.history[-1]["validation_dead"]
    assert dead[0.02] < 0.05 < 0.2 < dead[0.0], dead


def test_other_first_directions(planted: Activations):
    y = Scale.of(planted).apply(planted.read(0, 500))
    rows = torch.nn.functional.normalize(y, dim=1)
    nearest = {}
    for init in ("kaiming", "orthogonal", "data"):
        model = Autoencoder(WIDTH, ATOMS, torch.Generator().manual_seed(1), init)
        model.start(y, 4, torch.Generator().manual_seed(2))
        directions = model.decoder.detach()
        for block in directions.split(WIDTH):
            apart = float((block @ block.T - torch.eye(WIDTH)).abs().max())
            assert (apart < 1e-5) == (init == "orthogonal")
        nearest[init] = float((directions @ rows.T).max(1).values.mean())
        fitted = training.train(planted, knobs(init=init), TARGETS, 0)
        assert fitted.history[-1]["fvu"] < 0.35
    assert nearest["data"] > 0.9 > nearest["kaiming"]


def bury(model: Autoencoder, y: torch.Tensor, k: int, generator: torch.Generator) -> None:
    """A start after which all latents but the first ATOMS cannot fire."""
    model.b_enc.data[ATOMS:] = -1e3


def test_a_long_row_is_shortened_and_keeps_its_direction():
    x = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]], dtype=torch.bfloat16)
    expected = torch.tensor([[1.2, 1.6], [0.6, 0.8], [0.0, 0.0]])
    assert torch.allclose(shortened(x, 2.0), expected, atol=2e-3)


def test_a_few_long_rows_cost_the_others_nothing_where_they_are_shortened(planted: Activations):
    """A training row in 200 is made 30 times as long: they hold most of the variance."""
    x = torch.cat(list(planted.blocks(0, planted.rows))).float()
    first, end = planted.split("train")
    x[first:end:200] *= 30
    rows = stored(x, planted.meta["splits"])

    def error(outliers: str) -> float:
        fitted = training.train(rows, knobs(epochs=4, outliers=outliers), TARGETS, 0)
        test = rows.blocks(*rows.split("test"))
        return reconstruction(fitted.best.reconstruct, test, rows.scale, rows.median_norm)["fvu_inlier"]

    kept, short, skipped = (error(outliers) for outliers in ("keep", "shorten", "skip"))
    assert short < kept / 2 and short < 1.2 * skipped


@pytest.mark.parametrize("outliers", ["keep", "skip"])
def test_latents_silent_from_the_first_step_are_dead_after_one_epoch(planted: Activations, outliers: str):
    """Half of the latents cannot fire: their share is told at the end of epoch 1, and paid for by its checkpoint."""
    plan = knobs(rule="topk", latents=2 * ATOMS, epochs=2, auxk=0.0, wake=0.0, outliers=outliers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Autoencoder, "start", bury)
        fitted = training.train(planted, plan, TARGETS, 0)
    first, second = (row for row in fitted.history if "score" in row)
    assert first["validation_dead"] >= 0.5 and second["validation_dead"] >= 0.5
    assert first["score"] > first["validation_fvu"] + 1  # targets: dead at most 10 %


def test_silent_latents_begin_anew_after_the_first_epoch(planted: Activations, monkeypatch: pytest.MonkeyPatch):
    """Those that never fired are resampled at the end of epoch 1; at the end of the last one nothing is."""
    resampled = []
    original = Autoencoder.resample

    def count(model: Autoencoder, run: Any, dead: torch.Tensor, generator: torch.Generator) -> None:
        resampled.append(len(dead))
        original(model, run, dead, generator)

    monkeypatch.setattr(Autoencoder, "start", bury)
    monkeypatch.setattr(Autoencoder, "resample", count)
    plan = knobs(rule="topk", latents=2 * ATOMS, epochs=2, auxk=0.0, wake=0.0, resample_every=1)
    training.train(planted, plan, TARGETS, 0)
    assert len(resampled) == 1 and resampled[0] >= ATOMS


def test_validation_rows_that_do_not_vary_are_said(planted: Activations):
    class Flat:
        """The planted rows, of which the first 16 validation rows are all the same."""

        def __getattr__(self, name: str) -> Any:
            return getattr(planted, name)

        def blocks(self, first: int, end: int, rows: int = 4096):
            start, _ = planted.split("validation")
            for block in planted.blocks(first, end, rows):
                yield torch.cat([block[:1].expand(16, -1), block[16:]])[: len(block)] if first == start else block

    with pytest.raises(BadInput, match=r"the first 16 validation rows are all the same; raise train\.validation_rows"):
        training.train(Flat(), knobs(validation_rows=16), TARGETS, 0)  # pyright: ignore[reportArgumentType]


def test_learning_rate_by_hand():
    plan = knobs(lr=1.0, warmup=0.1, decay_from=0.5, decay="linear")
    assert [learning_rate(step, 100, plan) for step in (0, 10, 49, 50, 75, 99)] == pytest.approx(
        [1 / 11, 1, 1, 1, 0.5, 0.02]
    )
    assert learning_rate(75, 100, knobs(lr=1.0, decay_from=0.5, decay="cosine")) == pytest.approx(0.5)


def test_kept_epochs_history_and_best(planted: Activations):
    fitted = training.train(planted, knobs(epochs=3, keep_every=1), TARGETS, 0)
    assert sorted(fitted.saes) == ["best", "epoch-1", "epoch-2", "final"]
    ends = [row for row in fitted.history if "score" in row]
    assert len(ends) == 3 and fitted.best_score == min(row["score"] for row in ends)
    assert set(fitted.history[-1]) == set(COLUMNS)
    assert fitted.history[-1]["lr"] < fitted.history[0]["lr"] * 10


def test_knobs_of_one_layer():
    section = params.read()["train"]
    assert knobs_of(section, {}, {"k": 7}, 9, SIZE).k == 7
    with pytest.raises(BadInput, match="k is 5000, more than the 4096 latents"):
        knobs_of(section, {}, {"k": 5000}, 9, SIZE)
    with pytest.raises(BadInput, match=r"train with by_layer.9.kk is not a known key"):
        knobs_of(section, {}, {"kk": 7}, 9, SIZE)


def test_too_few_rows_for_a_batch(planted: Activations):
    with pytest.raises(BadInput, match=r"train.batch_size is 30000, but there are 20000 training rows"):
        training.train(planted, knobs(batch_size=30_000), TARGETS, 0)


def test_measure_on_a_real_stream(gpt2: Path, tmp_path: Path):
    """What goes into reports/train/<L>.json, controls included, from a tiny model end to end."""
    extract(tmp_path, gpt2, [1], extract_knobs())
    rows, contexts = open_activations(tmp_path / "1"), open_contexts(tmp_path / "tokens")
    lm = load(gpt2, torch.float32, torch.device("cpu"))
    plan = knobs(batch_size=64, ce_tokens=30)
    fitted = training.train(rows, plan, TARGETS, 0)
    found, frequency = room.measure(fitted, rows, contexts, lm, plan)
    assert set(found["controls"]) == {"mean", "pca", "untrained"}
    for values in (found["test"], *found["controls"].values()):
        assert set(values) == MEASURED
    assert found["controls"]["mean"]["ce_sae"] == found["test"]["ce_mean"]
    assert found["rows"]["ce_tokens"] >= 30
    alive = int((frequency > 0).sum())
    assert sum(found["density"]["counts"]) == alive == round((1 - found["test"]["dead"]) * ATOMS)
    without, _ = room.measure(fitted, rows, contexts, None, plan)
    assert without["test"]["delta_ce"] is None and without["test"]["fvu"] == found["test"]["fvu"]


def test_activations_of_another_model_or_text_are_refused(gpt2: Path, tmp_path: Path):
    extract(tmp_path, gpt2, [1], extract_knobs())
    layer, tokens = tmp_path / "1", tmp_path / "tokens"
    rows, contexts = open_layer(layer, tokens)
    assert rows.rows == contexts.meta["rows"]
    with pytest.raises(BadInput, match="was extracted from tiny, not from today's model"):
        open_layer(layer, tokens, {**rows.meta["model"], "fingerprint": "other"})
    write_json(tokens / "meta.json", {**contexts.meta, "corpus": "another"})
    with pytest.raises(BadInput, match="do not come from one text"):
        open_layer(layer, tokens, rows.meta["model"])


def test_pca_of_all_components_is_the_identity():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32))
    output, active = controls.pca([x[:70], x[70:]], x.mean(0), 6)(x)
    torch.testing.assert_close(output, x, rtol=1e-4, atol=1e-4)
    assert active.tolist() == [6] * 200


@pytest.mark.parametrize("first, per_row", [(1.0, 5.0), (0.05, 5.0), (20.0, 5.0), (1.0, 7.3), (1.0, 40.0)])
def test_a_threshold_is_the_exact_quantile(first: float, per_row: float):
    """Also where the first rows are quiet, or so loud that all others lie below what is looked at at first."""
    random = torch.Generator().manual_seed(0)
    encoder, rows = torch.randn(48, 16, generator=random), torch.randn(2000, 16, generator=random)
    rows[:256] *= first
    sae = SAE(encoder, torch.zeros(48), encoder, torch.zeros(16), k=1)
    settled = training.with_threshold(sae, per_row, lambda: rows.split(300))
    assert settled.threshold is not None
    h = sae.preactivations(rows).flatten()
    wanted = min(round(per_row * 2000), int((h > 0).sum()))
    assert len(settled.encode(rows).values) == wanted == int((h > settled.threshold[0]).sum())
