"""SAEs of other tools in and out: codes and reconstructions are those of the tool's own equation."""

import json
from dataclasses import replace
from pathlib import Path

import foreign
import pytest
import torch
from foreign import LATENTS, SOURCES, WIDTH, Forward
from torch import Tensor

from src.convert import main
from strata.formats import npz, saelens
from strata.formats.found import Found
from strata.formats.read import read
from strata.formats.write import write
from strata.run.door import BadInput
from strata.run.files import read_json
from strata.sae import disk
from strata.sae.engine.nonlinearity import Nonlinearity
from strata.sae.sae import SAE

FORMATS = ("saelens", "sparsify", "dictionary_learning", "npz")


def dense(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    codes = sae.encode(x)
    return codes.pattern.dense(codes.values), sae.decode(codes)


def error(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖ of the worst row."""
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp(min=1e-6)).max())


def same(sae: SAE, forward: Forward) -> None:
    x = foreign.rows()
    for ours, theirs in zip(dense(sae, x), forward(x), strict=True):
        assert error(ours, theirs) < 1e-5
    codes = forward(x)[0]
    assert 0 < (codes > 0).float().mean() < 0.9 and forward(x)[1].std() > 0.1, "there is something to compare"


@pytest.mark.parametrize("name", SOURCES)
def test_in_and_round_every_format(name: str, tmp_path: Path) -> None:
    source, forward = SOURCES[name](tmp_path / "source")
    main(str(source), str(tmp_path / "strata"))
    sae, config = disk.load(tmp_path / "strata")
    same(sae, forward)
    for form in FORMATS:
        if form == "sparsify" and sae.k is None:
            with pytest.raises(BadInput, match="sparsify has no thresholds"):
                main(str(tmp_path / "strata"), str(tmp_path / form), form)
            continue
        main(str(tmp_path / "strata"), str(tmp_path / form), form)
        main(str(tmp_path / form), str(tmp_path / f"{form}-back"))
        back, again = disk.load(tmp_path / f"{form}-back")
        same(back, forward)
        assert back.k == sae.k and again["metadata"] == config["metadata"]


def test_what_is_not_square_cannot_be_turned_round_unseen(tmp_path: Path) -> None:
    """And a square one is read the right way by each tool's rule: the equation above would differ."""
    assert LATENTS != WIDTH
    source, _ = foreign.sparsify(tmp_path)
    path = source / "sae.safetensors"
    tensors = {
        name: tensor.T.contiguous() if name == "W_dec" else tensor for name, tensor in foreign.load_file(path).items()
    }
    foreign.save_file(tensors, path)
    with pytest.raises(BadInput, match=r"W_dec \(16, 48\).* but such an SAE has .*W_dec \(latent, width\)"):
        read(source)


def test_the_gate_of_a_gated_sae_is_a_threshold() -> None:
    """By hand, one latent of width one: u = x; the gate opens above 1, the magnitude 2 u − 3 is positive above 1.5."""
    found = {
        "W_enc": [[1.0]], "W_dec": [[1.0]], "b_dec": [0.0], "b_gate": [-1.0], "b_mag": [-3.0], "r_mag": [0.6931472],
    }  # fmt: skip

    def made(**changes: list[float]) -> SAE:
        tensors = {name: torch.tensor(value) for name, value in (found | changes).items()}
        return saelens._made(tensors, {"architecture": "gated"}, Path("cfg.json"))

    x = torch.tensor([[0.5], [1.2], [1.6], [3.0]])
    assert dense(made(), x)[0].flatten().tolist() == pytest.approx([0, 0, 0.2, 3.0], abs=1e-5)
    assert dense(made(b_mag=[1.0]), x)[0].flatten().tolist() == pytest.approx([0, 3.4, 4.2, 7.0], abs=1e-5)


@pytest.mark.parametrize("ending", ["identity", "tanh", "sigmoid"])
def test_growth_signals_decoder_ends_in_what_the_user_says(ending: Nonlinearity, tmp_path: Path) -> None:
    source, forward = foreign.growth(tmp_path / "source", ending)
    with pytest.raises(BadInput, match="does not say what its decoder ends in: add one of identity, tanh, sigmoid"):
        main(str(source), str(tmp_path / "strata"))
    main(str(source), str(tmp_path / "strata"), "strata", ending)
    sae, config = disk.load(tmp_path / "strata")
    same(sae, forward)
    if ending == "identity":
        return
    assert config["architecture"] == f"strata_jumprelu_{ending}"
    main(str(tmp_path / "strata"), str(tmp_path / "again"))
    same(disk.load(tmp_path / "again")[0], forward)
    for form in FORMATS:
        with pytest.raises(BadInput, match=f"its decoder ends in {ending}, which {form} cannot say; write strata"):
            main(str(tmp_path / "strata"), str(tmp_path / form), form)
        assert not (tmp_path / form).exists()


def test_spindles_negative_codes_become_0_and_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = foreign.weights()
    state = {"enc.weight": w.enc, "enc.bias": w.b - 100, "dec.weight": w.dec.T, "dec.bias": w.b_dec}
    torch.save({"state_dict": state, "k": 5}, tmp_path / "k.pt")
    main(str(tmp_path / "k.pt"), str(tmp_path / "out"))
    assert "negative ones, which become 0 here" in capsys.readouterr().out
    assert dense(disk.load(tmp_path / "out")[0], foreign.rows())[0].count_nonzero() == 0


def test_groups_are_refused_by_other_formats_and_kept_by_ours(tmp_path: Path) -> None:
    w = foreign.weights()
    groups = torch.arange(LATENTS) // 2
    sae = SAE(w.enc, w.b, w.dec[::2].clone(), w.b_dec, k=5, groups=groups, shares=torch.ones(LATENTS))
    disk.save(tmp_path / "merged", sae, {})
    main(str(tmp_path / "merged"), str(tmp_path / "strata"))
    x = foreign.rows()
    assert torch.equal(dense(disk.load(tmp_path / "strata")[0], x)[1], sae.reconstruct(x)[0])
    for form in FORMATS:
        with pytest.raises(BadInput, match=r"sums of parts, which .* merge with merge.encoder: mean, or write strata"):
            main(str(tmp_path / "merged"), str(tmp_path / form), form)


def test_a_line_says_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {
        "saelens_topk": "read SAELens (topk), 48 latents of width 16, k = 5; wrote strata to",
        "dl_batchtopk": "read dictionary_learning (BatchTopKSAE), 48 latents of width 16, threshold 0.7; wrote",
        "dl_unset": "no threshold; its threshold was never set (-1), so every positive pre-activation counts",
        "gemma_scope": "read Gemma Scope (jumprelu), 48 latents of width 16, thresholds 0.0",
        "spindle": "read Spindle (relu), 48 latents of width 16, no threshold; wrote",
    }
    for name, line in said.items():
        source, _ = SOURCES[name](tmp_path / name)
        main(str(source), str(tmp_path / f"{name}-out"))
        out = capsys.readouterr().out
        assert line in out and out.count("\n") == 1
        assert f"sha256 {disk.fingerprint(tmp_path / f'{name}-out')}" in out


def test_where_it_belongs_comes_along(tmp_path: Path) -> None:
    for name in ("saelens_topk", "saelens_legacy", "sparsify", "dl_topk"):
        source, _ = SOURCES[name](tmp_path / name)
        found = read(source)
        assert found.metadata["hook_name"] == "blocks.3.hook_resid_post", name
        assert found.metadata["model_name"] in ("tiny/lm", "gpt2")


def test_how_often_latents_fire_comes_along(tmp_path: Path) -> None:
    w, density = foreign.weights(), torch.linspace(0, 1, LATENTS)
    sae = SAE(w.enc, w.b, w.dec, w.b_dec, threshold=w.more)
    disk.save(tmp_path / "one", sae, {}, density)
    main(str(tmp_path / "one"), str(tmp_path / "two"))
    found = read(tmp_path / "two").density
    assert found is not None and torch.allclose(found.float(), density, atol=1e-6)
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_file_may_be_named_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, here in (("spindle", "sae.pt"), ("dl_topk", "."), ("dl_topk", "ae.pt"), ("dl_jumprelu", "ae_1000.pt")):
        source, forward = SOURCES[name](tmp_path / here / name)
        monkeypatch.chdir(source.parent if source.is_file() else source)
        main(here, str(tmp_path / f"{name}-{here}-out"))
        same(disk.load(tmp_path / f"{name}-{here}-out")[0], forward)


@pytest.mark.parametrize("here", [".", "../layers.3", "inner/.."])
def test_where_it_belongs_does_not_depend_on_how_its_folder_is_named(
    here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = SOURCES["sparsify"](tmp_path)
    assert source.name == "layers.3"
    (source / "inner").mkdir()
    monkeypatch.chdir(source)
    assert read(Path(here)).metadata == {"hook_name": "blocks.3.hook_resid_post", "model_name": "tiny/lm"}
    (source.parent / "config.json").write_text("[1]")
    assert read(Path(here)).metadata == {"hook_name": "blocks.3.hook_resid_post"}


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    source, _ = foreign.saelens_uncentred(tmp_path / "source")
    halves = {name: tensor.bfloat16() for name, tensor in foreign.load_file(source / "sae_weights.safetensors").items()}
    foreign.save_file(halves, source / "sae_weights.safetensors")
    found = read(source).sae
    assert found.decoder.dtype is torch.float32 and torch.equal(found.decoder, halves["W_dec"].float())


def test_the_arrays_of_strata_are_read_with_and_without_a_decoder(tmp_path: Path) -> None:
    source, forward = foreign.dl_topk(tmp_path / "source")
    main(str(source), str(tmp_path / "npz"), "npz")
    same(read(tmp_path / "npz" / npz.ENCODER).sae, forward)
    (tmp_path / "npz" / npz.DECODER).unlink()
    assert read(tmp_path / "npz").notes == ("there is no decoder.npz, so the encoder's rows decode",)


def test_what_other_tools_find_in_their_configuration(tmp_path: Path) -> None:
    w = foreign.weights()
    topk = Found(SAE(w.enc, w.b, w.dec, w.b_dec, k=5), "Strata", "topk", {"hook_name": "blocks.3.hook_resid_post"})
    write(tmp_path / "s", topk, "sparsify")
    assert read_json(tmp_path / "s/cfg.json") == {
        "activation": "topk", "expansion_factor": 3, "normalize_decoder": True, "num_latents": 48, "k": 5,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": 16,
    }  # fmt: skip
    write(tmp_path / "t", topk, "dictionary_learning")
    assert json.loads((tmp_path / "t/config.json").read_text())["trainer"]["dict_class"] == "AutoEncoderTopK"
    jump = replace(topk, sae=replace(topk.sae, k=None, threshold=torch.full((48,), 0.5)))
    write(tmp_path / "j", jump, "dictionary_learning")
    assert json.loads((tmp_path / "j/config.json").read_text())["trainer"]["dict_class"] == "JumpReluAutoEncoder"
