"""Merge: codes are the sums that M says, the decoder is the closed form's, and nothing is lost where nothing merges."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import test_interpret
import torch
import yaml
from killing import Killed, survives
from scipy.cluster.hierarchy import linkage
from test_train import stored

from strata.families.read import DEAD, NOISE, Clusters, cut, numbered
from strata.interpretation.codes import write_codes
from strata.interpretation.interpret import interpret
from strata.interpretation.read import Latents, open_codes, open_latents
from strata.interpretation.statistics import geometry
from strata.measure.quality import firing_counts, reconstruction
from strata.merging import merge as room
from strata.merging.groups import Groups, alone, energy, families, led, strongest, weighted, whole
from strata.merging.knobs import Merge
from strata.merging.moments import Moments, grouped_gram, moments
from strata.merging.read import GROUPS, SCHEMA, members
from strata.merging.refit import refit, start
from strata.merging.rows import blocks
from strata.rows.shards import Contexts
from strata.run import files
from strata.run.door import BadInput
from strata.run.params import check
from strata.sae import disk
from strata.sae.sae import NO_GROUP, SAE

ROOT = Path(__file__).resolve().parents[1]
ROWS, WIDTH, LATENTS, SILENT = 12_000, 16, 32, 5
SPLITS = {"train": [0, 9000], "validation": [9000, 10_000], "test": [10_000, ROWS]}


def knobs(**changes: Any) -> Merge:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["merge"]
    return check({**values, "curve": [0.25], "ce_tokens": 0, **changes}, Merge, "params.yaml: merge")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(copies: int = 1, k: int | None = None, latents: int = LATENTS) -> SAE:
    """Directions that write what they read, each ``copies`` times; one latent never fires."""
    directions = torch.nn.functional.normalize(random(latents, WIDTH), dim=1)
    threshold = torch.full((latents,), 1.2)
    bias = torch.zeros(latents)
    bias[SILENT] = -1e6
    return SAE(
        directions.repeat_interleave(copies, 0),
        bias.repeat_interleave(copies, 0),
        directions.repeat_interleave(copies, 0) * 0.6 / copies,
        torch.full((WIDTH,), 0.1),
        k=k,
        threshold=threshold.repeat_interleave(copies, 0) if k is None else None,
    )


def source(folder: Path, sae: SAE, count: int = 8, labels: np.ndarray | None = None, tree: bool = True) -> room.Source:
    """Random rows, the codes that interpret would write of them, and clusters of the decoder's directions."""
    rows = stored(3 * random(ROWS, WIDTH, seed=1), SPLITS)
    rows.meta["hook"] = "resid_post"
    shards, _ = write_codes(sae, rows, folder)
    codes = open_codes(folder, shards, sae.latents)
    living = np.diff(codes.starts.sum(0)) > 0
    found = linkage(sae.decoder[torch.from_numpy(living)].numpy(), "average", metric="cosine")
    if labels is None:
        labels = np.full(sae.latents, DEAD)
        labels[living] = cut(found, count)
    meta = {"layer": 0, "latents": sae.latents}
    clusters = Clusters(folder, meta, labels, found if tree else None)
    return room.Source(rows, Contexts(folder, {}), Latents(folder, {**meta, "rows": ROWS}, codes), clusters)


def sums(from_: room.Source, rows: int = 8192) -> Moments:
    codes = from_.latents.codes
    return moments(blocks(from_.activations, codes, 0, 9000, rows), codes.latents, WIDTH)


def dense(from_: room.Source, sae: SAE) -> tuple[np.ndarray, np.ndarray]:
    """X and z of the training rows, float64."""
    x = from_.activations.read(0, 9000).float()
    codes = sae.encode(x)
    return x.double().numpy(), codes.pattern.dense(codes.values).double().numpy()


def matrix(groups: Groups) -> np.ndarray:
    found = np.zeros((len(groups.of), groups.count))
    inside = np.flatnonzero(groups.of >= 0)
    found[inside, groups.of[inside]] = groups.shares[inside]
    return found


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[SAE, room.Source]:
    sae = made()
    return sae, source(tmp_path_factory.mktemp("layer"), sae)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_codes_of_a_group_by_hand():
    """M = [[1, 0], [0, 0], [2, 0], [0, 1]]: rows (1, 5, 1, 0), (0, 7, 0, 0), (0, 0, 3, 4) -> (3, 0), (0, 0), (6, 4)."""
    sae = SAE(torch.eye(4), torch.zeros(4), torch.eye(4)[:2], torch.zeros(4), threshold=torch.zeros(4))
    sae = replace(sae, groups=torch.tensor([0, NO_GROUP, 0, 1]), shares=torch.tensor([1.0, 1.0, 2.0, 1.0]))
    codes = sae.encode(torch.tensor([[1.0, 5, 1, 0], [0, 7, 0, 0], [0, 0, 3, 4]]))
    assert codes.pattern.dense(codes.values).tolist() == [[3, 0], [0, 0], [6, 4]]
    assert codes.active().tolist() == [1, 0, 2] and (sae.latents, sae.parts) == (2, 4)
    assert sae.directions_read().tolist() == [[1, 0, 2, 0], [0, 0, 0, 1]]


def test_codes_of_groups_are_the_product_with_m(layer: tuple[SAE, room.Source]):
    sae, from_ = layer
    x, z = dense(from_, sae)
    groups = Groups(np.arange(LATENTS) % 7 - 1, np.linspace(0, 2, LATENTS))
    codes = room.codes_of(sae.encode(torch.from_numpy(x).float()), groups)
    np.testing.assert_allclose(codes.pattern.dense(codes.values).numpy(), z @ matrix(groups), rtol=1e-5)
    assert (codes.values > 0).all()
    entries = codes.pattern.row_of * 6 + codes.pattern.latents
    assert (entries.diff() > 0).all()  # in order, and none twice


def test_rows_of_m_are_one_hot_and_its_columns_add_up_to_the_sizes(layer: tuple[SAE, room.Source]):
    _, from_ = layer
    groups = whole(families(from_.clusters, 6))
    m = matrix(groups)
    assert set(m.sum(1)) == {0, 1} and (m > 0).sum(1).max() == 1
    assert m.sum(0).tolist() == np.bincount(groups.of[groups.of >= 0]).tolist()
    assert groups.of[SILENT] < 0 and m[SILENT].sum() == 0


def test_noise_stays_alone():
    labels = np.array([NOISE, 0, 0, DEAD, NOISE])
    found = families(Clusters(Path(), {}, labels, None), None)
    assert found.tolist() == [1, 0, 0, DEAD, 2]


def test_leaders_by_hand():
    """Energies 9, 8, 4, 1 along x, nearly x, y, nearly y: two leaders are one of each, not the two largest."""
    decoder = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 1], [-1, 0]])
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    given = Moments(1, np.diag([9.0, 8, 4, 1, 0.1]), np.zeros((5, 2)), np.zeros(5), np.zeros(2))
    (groups,) = led(given, decoder, np.zeros(5, np.int64), [2])
    assert groups.of.tolist() == [0, 0, 1, 1, NO_GROUP]  # the last points away from both, and is dropped
    (apart,) = led(given, decoder, np.array([0, 1, 0, 1, 1]), [2])
    assert apart.of.tolist() == [1, 0, 0, 0, NO_GROUP]  # the third has no leader of its cluster at an acute angle
    assert strongest(given, decoder, 2).of.tolist() == [0, 1, NO_GROUP, NO_GROUP, NO_GROUP]


@pytest.mark.parametrize("by", ["loss", "clusters"])
def test_a_share_of_few_latents_is_at_least_one(layer: tuple[SAE, room.Source], by: str):
    sae, from_ = layer
    few = knobs(by=by, latents=0.001)
    groups, *_ = room.grouped(few, from_.clusters, sums(from_), sae.decoder.double().numpy(), [])
    assert groups.count == 1


def test_shares_are_cosines_with_the_direction_that_loses_least():
    rng = np.random.default_rng(0)
    decoder, power = rng.normal(size=(5, 8)) + 1, rng.random(5) + 0.1
    given = Moments(1, np.diag(power), np.zeros((5, 8)), np.zeros(5), np.zeros(8))
    groups = weighted(Groups(np.array([0, 0, 0, 0, 1]), np.ones(5)), given, decoder)
    assert groups.shares[4] == 1 and groups.shares[energy(given, decoder)[:4].argmax()] == 1

    def loss(shares: np.ndarray) -> float:
        """Σ E z² ‖d − share·D‖², with the best D."""
        best = (power[:4] * shares) @ decoder[:4] / (power[:4] @ shares**2)
        return float(power[:4] @ ((decoder[:4] - shares[:, None] * best) ** 2).sum(1))

    least = loss(groups.shares[:4])
    assert all(loss(groups.shares[:4] + 0.05 * rng.normal(size=4)) > least for _ in range(50))


# --- the refit --------------------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_dense_codes(layer: tuple[SAE, room.Source]):
    sae, from_ = layer
    x, z = dense(from_, sae)
    found = sums(from_)
    np.testing.assert_allclose(found.gram, z.T @ z, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.cross, z.T @ x, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found.sums, z.sum(0), rtol=1e-9)
    np.testing.assert_allclose(found.total, x.sum(0), rtol=1e-9)
    groups = Groups(np.arange(LATENTS) % 5 - 1, np.linspace(0.5, 2, LATENTS))
    zm = z @ matrix(groups)
    np.testing.assert_allclose(grouped_gram(found.gram, groups.of, groups.shares, 4), zm.T @ zm, rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 1e-2, 10.0])
def test_the_refit_is_the_closed_form_for_1_or_8_batches(layer: tuple[SAE, room.Source], ridge: float):
    """Least squares of the stacked system [ZM − mean; √λ I] D = [X − mean; √λ D₀], in float64."""
    sae, from_ = layer
    x, z = dense(from_, sae)
    decoder = sae.decoder.double().numpy()
    groups = weighted(whole(families(from_.clusters, 6)), sums(from_), decoder)
    zm = z @ matrix(groups)
    centred = zm - zm.mean(0)
    penalty = ridge * (centred**2).sum(0).mean()
    first = start(sums(from_), groups, decoder)
    np.testing.assert_allclose(
        first[0],
        np.linalg.lstsq(zm[:, :1], z[:, groups.of == 0] @ decoder[groups.of == 0], rcond=None)[0][0],
        rtol=1e-8,
    )
    above = np.vstack([centred, np.sqrt(penalty) * np.eye(groups.count)])
    right = np.vstack([x - x.mean(0), np.sqrt(penalty) * first])
    wanted = np.linalg.lstsq(above, right, rcond=None)[0]
    one, eight = (refit(sums(from_, rows), groups, decoder, ridge) for rows in (9000, 1125))
    np.testing.assert_allclose(one[0], wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one[1], x.mean(0) - zm.mean(0) @ wanted, rtol=1e-6, atol=1e-6)
    assert (one[0] == eight[0]).all() and (one[1] == eight[1]).all()  # bit for bit


def test_without_a_ridge_singular_equations_are_refused(layer: tuple[SAE, room.Source], tmp_path: Path):
    sae, from_ = layer
    decoder = sae.decoder.double().numpy()
    with pytest.raises(BadInput, match=r"merge.ridge is too small: the normal equations are singular"):
        refit(sums(from_), alone(LATENTS, np.arange(LATENTS)), decoder, 0.0)  # one is silent
    twice = made(2)
    given, decoder = sums(source(tmp_path, twice)), twice.decoder.double().numpy()
    with pytest.raises(BadInput, match=r"singular.*set it above 0"):
        refit(given, strongest(given, decoder, 40), decoder, 0.0)
    assert np.isfinite(refit(given, strongest(given, decoder, 40), decoder, 1e-6)[0]).all()


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 6])
def test_merging_singletons_changes_nothing(tmp_path: Path, k: int | None):
    sae = made(k=k)
    from_ = source(tmp_path, sae)
    living = len(from_.clusters.living)
    assert living == LATENTS - 1
    for by in ("loss", "clusters"):
        found = room.merge(sae, from_, knobs(latents=1.0, by=by), None)
        assert not found.report["refitted"] and found.groups.count == living
        x = from_.activations.read(0, ROWS).float()
        before, after = sae.encode(x), found.sae.encode(x)
        assert torch.equal(before.values, after.values) and torch.equal(before.pattern.starts, after.pattern.starts)
        place = torch.from_numpy(found.groups.of)
        assert torch.equal(place[before.pattern.latents], after.pattern.latents)
        torch.testing.assert_close(found.sae.decoder[place[place >= 0]], sae.decoder[place >= 0], rtol=0, atol=1e-5)
        assert torch.equal(found.sae.b_dec, sae.b_dec)
        if k is None:
            assert found.sae.groups is None  # an ordinary SAE


@pytest.mark.parametrize("encoder", ["parts", "mean"])
def test_after_a_kill_it_goes_on_behind_the_last_pass_over_the_rows(
    layer: tuple[SAE, room.Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
):
    sae, from_ = layer
    halved = knobs(latents=0.5, encoder=encoder)
    whole = room.merge(sae, from_, halved, None)
    passes = {"moments": 1 if encoder == "parts" else 3, "firing": 1, "held_out": 1, "measured": 1}
    for name in list(passes)[1:]:  # killed as each pass begins; those before it are kept
        with monkeypatch.context() as killing, pytest.raises(Killed):
            survives(killing, room, name, 0)
            room.merge(sae, from_, halved, None, work=tmp_path)
    for name in list(passes)[:-1]:
        survives(monkeypatch, room, name, 0)
    again = room.merge(sae, from_, halved, None, work=tmp_path)
    assert again.report == whole.report and torch.equal(again.density, whole.density)
    for name, tensor in whole.sae.tensors().items():
        assert torch.equal(tensor, again.sae.tensors()[name]), name


@pytest.mark.parametrize("by", ["loss", "clusters"])
@pytest.mark.parametrize("codes", ["sum", "cosine"])
def test_copies_merge_into_what_they_are_copies_of(tmp_path: Path, by: str, codes: str):
    """32 latents, 8 times each (without the silent one)."""
    sae = made(8)
    sae = replace(sae, b_enc=torch.zeros(8 * LATENTS))
    from_ = source(tmp_path, sae, 32)
    found = room.merge(sae, from_, knobs(latents=32 / 256, by=by, codes=codes), None)
    truth = np.arange(8 * LATENTS) // 8
    assert found.groups.count == 32 and (numbered(truth) == found.groups.of).all()
    test = found.report["test"]
    assert test["after"]["mse"] <= 1.05 * test["before"]["mse"]
    assert test["after"]["mse"] < 0.5 * test["refitted"]["mse"]
    assert test["after"]["l0"] == pytest.approx(test["before"]["l0"] / 8)


def test_a_merged_sae_is_like_any_other(layer: tuple[SAE, room.Source], tmp_path: Path):
    """Saved, loaded, measured: what the report says of it is what the loaded one does."""
    sae, from_ = layer
    found = room.merge(sae, from_, knobs(latents=0.5), None)
    disk.save(tmp_path, found.sae, {"l0": 1.0}, found.density)
    loaded, config = disk.load(tmp_path)
    assert config["architecture"] == "strata_jumprelu_groups"
    assert (config["d_sae"], config["parts"]) == (found.groups.count, int((found.groups.of >= 0).sum()))
    for name, tensor in found.sae.tensors().items():
        assert torch.equal(tensor, loaded.tensors()[name]), name
    test, said = from_.activations.blocks(10_000, ROWS), found.report["test"]["after"]
    rows = from_.activations
    again = reconstruction(loaded.reconstruct, test, rows.scale, rows.median_norm)
    assert {name: said[name] for name in again} == again
    counts = firing_counts(loaded, rows.blocks(0, ROWS))
    assert said["dead"] == float((counts == 0).float().mean()) and said["latents"] == loaded.latents == len(counts)
    torch.testing.assert_close(found.density, counts.double() / ROWS, rtol=1e-3, atol=2 / ROWS)
    assert geometry(loaded)["encoder_decoder_cosine"].shape == (loaded.latents,)
    shards, _ = write_codes(loaded, rows, tmp_path)  # as interpret does
    assert open_codes(tmp_path, shards, loaded.latents).starts.shape[1] == loaded.latents + 1


def test_interpret_takes_it_as_it_takes_any(tmp_path: Path, gpt2: Path):
    sae, from_ = test_interpret.make_sae(), test_interpret.make_source(tmp_path / "rows", gpt2, *test_interpret.texts())
    groups = Groups(np.arange(sae.latents) // 2, np.ones(sae.latents))
    merged = room.smaller(sae, groups, sae.decoder[::2].double(), sae.b_dec.double())
    (tmp_path / "work").mkdir()
    found = interpret(merged, from_, test_interpret.knobs(), 0, tmp_path / "latents", tmp_path / "work")
    assert found["latents"] == merged.latents == sae.latents // 2
    latents, codes = open_latents(tmp_path / "latents"), merged.encode(from_.activations.read(0, 500).float())
    columns = latents.columns(3, 4)
    mine = codes.pattern.latents == 3
    few = int(mine.sum())
    assert few and columns.rows[:few].tolist() == codes.pattern.row_of[mine].tolist()
    assert columns.values[:few].tolist() == pytest.approx(codes.values[mine].tolist(), rel=1e-5)
    statistics = latents.table("statistics")
    assert statistics is not None and statistics.num_rows == merged.latents


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_the_report_holds_for_both_kinds_and_repeats(tmp_path: Path, architecture: str):
    sae = made(k=6 if architecture == "topk" else None)
    from_ = source(tmp_path, sae)
    found = room.merge(sae, from_, knobs(latents=0.5), None)
    assert room.merge(sae, from_, knobs(latents=0.5), None).report == found.report
    rows = from_.activations
    plain = reconstruction(sae.reconstruct, rows.blocks(10_000, ROWS), rows.scale, rows.median_norm)
    assert {name: found.report["test"]["before"][name] for name in plain} == plain
    values = sae.encode(torch.cat(list(rows.blocks(0, 9000))).float())
    written = torch.bincount(values.pattern.latents, values.values.double().square(), LATENTS)
    weak = (written * sae.decoder.double().square().sum(1)).argsort()[: LATENTS - found.groups.count]
    silenced = replace(sae, decoder=sae.decoder.index_fill(0, weak, 0.0))
    plain = reconstruction(silenced.reconstruct, rows.blocks(10_000, ROWS), rows.scale, rows.median_norm)
    assert found.report["test"]["dropped"]["fvu"] == pytest.approx(plain["fvu"], rel=1e-4)
    assert found.report["test"]["refitted"]["fvu"] < 0.99 * plain["fvu"]
    first, point = (point for point in found.report["curve"] if point["line"] == "merged")
    assert first["latents"] == 16 and first["fvu"] == pytest.approx(found.report["test"]["after"]["fvu"], rel=1e-4)
    alike = room.merge(sae, from_, knobs(latents=0.25, curve=[]), None).report["test"]["after"]
    assert point["latents"] == 8 and point["fvu"] == pytest.approx(alike["fvu"], rel=1e-4)
    lines = room.curve_csv(found.report["curve"]).splitlines()
    assert lines[0] == "latents,merged,dropped,refitted" and lines[1].startswith("8,")


def test_with_an_encoder_of_its_own_it_is_an_ordinary_sae(layer: tuple[SAE, room.Source], tmp_path: Path):
    sae, from_ = layer
    found = room.merge(sae, from_, knobs(latents=0.5, encoder="mean"), None)
    disk.save(tmp_path, found.sae, {}, found.density)
    loaded, config = disk.load(tmp_path)
    assert config["architecture"] == "jumprelu" and loaded.latents == loaded.parts == found.groups.count
    test = found.report["test"]
    assert test["after"]["fvu"] < 1.1 * test["refitted"]["fvu"]
    for k in (None, 6):
        many = made(8, k=k and 8 * k)
        many = replace(many, b_enc=torch.zeros(8 * LATENTS))
        again = room.merge(many, source(tmp_path, many, 32), knobs(latents=32 / 256, encoder="mean"), None)
        test = again.report["test"]
        assert again.sae.groups is None and test["after"]["mse"] <= 1.05 * test["before"]["mse"]


@pytest.mark.parametrize("encoder", ["parts", "mean"])
@pytest.mark.parametrize("by", ["loss", "clusters"])
def test_what_a_merged_latent_is_made_of_is_written(
    layer: tuple[SAE, room.Source], tmp_path: Path, encoder: str, by: str
):
    sae, from_ = layer
    found = room.merge(sae, from_, knobs(latents=0.5, encoder=encoder, by=by), None)
    files.write_table(tmp_path / GROUPS, found.groups.table(), SCHEMA)
    made_of = members(tmp_path)
    assert len(made_of) == found.sae.latents and min(map(len, made_of)) >= 1
    flat = [latent for latents in made_of for latent in latents]
    assert len(set(flat)) == len(flat), "a latent counts twice"
    rows = pq.read_table(tmp_path / GROUPS).to_pylist()
    assert sorted(row["latent"] for row in rows) == list(range(LATENTS)), "the dropped ones are told, too"
    assert {row["latent"] for row in rows if row["merged"] is None} == set(range(LATENTS)) - set(flat)

    # By the SAE itself: a latent of the smaller one goes with those that it is made of.
    x = from_.activations.read(0, 500).float()
    before, after = (codes.pattern.dense(codes.values) for codes in (sae.encode(x), found.sae.encode(x)))
    for number, latents in enumerate(made_of):
        alone = before[:, latents].sum(1)
        if encoder == "parts":
            assert torch.equal(after[:, number] > 0, alone > 0)
        assert torch.corrcoef(torch.stack([after[:, number], alone]))[0, 1] > 0.5

    told = found.report["groups"]
    assert [len(group["latents"]) for group in told] == sorted((len(g) for g in made_of if len(g) > 1), reverse=True)[
        :10
    ]
    assert all(group["latents"] == made_of[group["merged"]] for group in told)


def test_groups_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(BadInput, match=r"groups.parquet is missing; run merge"):
        members(tmp_path)
    (tmp_path / GROUPS).write_bytes(b"PAR1")
    with pytest.raises(BadInput, match=r"groups.parquet cannot be read"):
        members(tmp_path)


def test_a_bent_decoder_is_merged_without_a_refit(tmp_path: Path):
    sae = replace(made(), decoder_activation="tanh", scale=0.3, mean=torch.zeros(WIDTH))
    found = room.merge(sae, source(tmp_path, sae), knobs(latents=0.5), None)
    assert not found.report["refitted"] and torch.equal(found.sae.b_dec, sae.b_dec)
    disk.save(tmp_path / "sae", found.sae, {})
    loaded, config = disk.load(tmp_path / "sae")
    assert config["architecture"] == "strata_jumprelu_tanh_groups" and loaded.decoder_activation == "tanh"


# --- what is turned away ----------------------------------------------------------------------------------------------


def test_mistakes_are_told(layer: tuple[SAE, room.Source]):
    sae, from_ = layer
    clusters = from_.clusters
    with pytest.raises(BadInput, match=r"merge cannot make 40 latents of 31 living ones; lower merge.latents"):
        families(clusters, 40)
    with pytest.raises(BadInput, match=r"has no tree to cut.*set merge.by: loss, or merge.latents: null"):
        room.merge(sae, replace(from_, clusters=replace(clusters, tree=None)), knobs(by="clusters"), None)
    with pytest.raises(BadInput, match=r"is of layer 3, but .* of layer 0"):
        room.check(sae, replace(from_, clusters=replace(clusters, meta={**clusters.meta, "layer": 3})))
    with pytest.raises(BadInput, match=r"is of 32 latents, but the SAE has 64"):
        room.check(made(2), from_)
    with pytest.raises(BadInput, match=r"curve is \[2.0\]; it must hold shares"):
        knobs(curve=[2.0])
    with pytest.raises(BadInput, match=r"merge.latents is 1.5"):
        knobs(latents=1.5)
    dead = replace(clusters, labels=np.full(LATENTS, DEAD), tree=None)
    with pytest.raises(BadInput, match=r"all 32 latents .* are dead"):
        room.check(sae, replace(from_, clusters=dead))


def test_a_broken_group_is_named(layer: tuple[SAE, room.Source], tmp_path: Path):
    sae, from_ = layer
    found = room.merge(sae, from_, knobs(latents=0.5), None).sae
    assert found.groups is not None
    disk.save(tmp_path, replace(found, groups=found.groups + 9), {})
    with pytest.raises(BadInput, match=r"groups must be whole numbers from -1 to 15"):
        disk.load(tmp_path)
