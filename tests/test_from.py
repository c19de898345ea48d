"""train.from: an SAE that goes out, comes back and is judged again is as good as it was, and nothing is trained."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import foreign
import pytest
import torch
from small import change, make, of_vectors, run
from streamlit.testing.v1 import AppTest
from test_train import knobs, stored

from src.convert import main
from stages.train import imported, origin
from stages.train.read import read_history, read_result
from strata.rows.shards import Activations
from strata.run.door import BadInput
from strata.run.files import read_json, sha256, write_json
from strata.sae import disk
from strata.sae.sae import SAE
from strata.training.knobs import From

MODEL = {"name": "tiny", "fingerprint": "f"}
AFTER = ("controls", "stability", "interpret", "explain", "cluster", "merge", "invert", "steer_eval", "evaluate")


@pytest.mark.slow
def test_an_sae_that_went_out_and_came_back_is_judged_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    of_vectors()
    change(train__rule="topk", train__epochs=2)
    run(
        "select",
        "fetch_lm",
        "fetch_corpus",
        "extract",
        "fetch_texts",
        "extract_texts",
        "fetch_tasks",
        "extract_tasks",
        "tune",
        "train",
    )
    trained = read_json(Path("reports/train/0.json"))
    assert trained["best"]["step"] > 0 and len(read_history(Path("reports/train/0.csv"))) > 0
    kept, frequency = disk.load(Path("data/sae/0"))[0], Path("data/sae/0/sparsity.safetensors").read_bytes()

    for form in ("saelens", "sparsify", "dictionary_learning", "npz"):
        main("data/sae/0", f"out/{form}", form)
        main(f"out/{form}", f"imported/{form}")
        shutil.rmtree("data/sae/0")
        pin = disk.fingerprint(Path(f"imported/{form}"))
        change(by_layer={0: {"from": {"folder": f"imported/{form}", "sha256": pin}}})
        run("select", "train")
        found = read_json(Path("reports/train/0.json"))
        expected = {**trained, "best": None, "curve": sha256(Path("reports/train/0.csv"))}
        if form == "npz":  # folds the bias in and out, so that the last bit may differ
            theirs, ours = expected.pop("test"), found.pop("test")
            assert expected.pop("weights") != found.pop("weights")
            for name, value in theirs.items():
                assert ours[name] == (value if value is None else pytest.approx(value, rel=1e-5)), name
        assert found == expected, form
        assert read_history(Path("reports/train/0.csv")) == []
        assert Path("data/sae/0/sparsity.safetensors").read_bytes() == frequency
        sae = disk.load(Path("data/sae/0"))[0]
        assert torch.allclose(sae.encoder, kept.encoder) and torch.allclose(sae.decoder, kept.decoder)
    run(*AFTER, "report")
    page = Path("reports/report.html").read_text()
    assert "imported" in page and ">Training</h2>" not in page and not Path("reports/plots/fvu.png").exists()
    assert read_result(Path("reports/train/0.json")).best is None
    summary = json.loads(Path("reports/summary.json").read_text())
    assert summary["train.0.fvu"] == pytest.approx(trained["test"]["fvu"]) and "train.0.best_step" not in summary
    assert list(Path("reports/latents/0").glob("*.html"))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # AppTest leaves the app there
    tab = AppTest.from_function(curves).run(timeout=60)
    assert not tab.exception and tab.info[0].value == "Nothing was trained: every SAE was given (train.from)."


def curves() -> None:
    from pathlib import Path

    from apps.dashboard.training import _curves

    _curves(Path("reports"))


@pytest.fixture
def rows() -> Activations:
    """Of width 16, as the block 3 of some model wrote them."""
    found = stored(3 * foreign.rows(), {"train": [0, 200], "validation": [200, 250], "test": [250, 300]})
    found.meta.update(layer=3, hook="resid_post", model=MODEL, corpus="c", forward="float32")
    return found


def pinned(folder: Path) -> From:
    return From(folder=str(folder), sha256=disk.fingerprint(folder))


def test_what_cannot_be_taken(rows: Activations, tmp_path: Path) -> None:
    source, _ = foreign.saelens_topk(tmp_path / "source")
    main(str(source), str(tmp_path / "sae"))
    folder = tmp_path / "sae"
    pin = disk.fingerprint(folder)

    def refused(sentence: str, sha256: str | None = None, at: Path = folder) -> None:
        with pytest.raises(BadInput, match=sentence):
            imported.load(From(folder=str(at), sha256=sha256 or disk.fingerprint(at)), rows)

    assert imported.load(From(folder=str(folder), sha256=pin), rows)[0].k == foreign.K
    refused(rf"train.from.sha256 must be that of .*sae, which is {pin}", sha256="0")
    refused("which holds no cfg.json; `python -m src.convert SOURCE .*nowhere` makes", "0", tmp_path / "nowhere")
    for name, wrong in (("blocks.4.hook_resid_post", True), ("blocks.3.hook_mlp_out", True), ("layers.7", False)):
        hook(folder, name)
        if wrong:
            refused(f"is for {name}, but layer 3 has blocks.3.hook_resid_post; give it its own layer's SAE")
        else:
            imported.load(pinned(folder), rows)
    hook(folder, "blocks.4.hook_resid_pre")  # the same place by another name
    imported.load(pinned(folder), rows)
    hook(folder, "blocks.3.hook_resid_pre")
    refused("is for blocks.3.hook_resid_pre, but")
    w = foreign.weights()
    narrow = SAE(w.enc[:, :8], w.b, w.dec[:, :8], w.b_dec[:8], k=2)
    disk.save(tmp_path / "narrow", narrow, {})
    of, shares = torch.arange(foreign.LATENTS) // 2, torch.ones(foreign.LATENTS)
    disk.save(tmp_path / "merged", SAE(w.enc, w.b, w.dec[::2].clone(), w.b_dec, k=2, groups=of, shares=shares), {})
    refused("latents that are sums of parts, which merge could not merge again", at=tmp_path / "merged")
    refused("is for width 8, but layer 3 has width 16", at=tmp_path / "narrow")


def test_the_folder_may_be_in_the_users_home(
    rows: Activations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = foreign.weights()
    disk.save(tmp_path / "sae", SAE(w.enc, w.b, w.dec, w.b_dec, k=2), {})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert imported.load(From(folder="~/sae", sha256=disk.fingerprint(tmp_path / "sae")), rows)[0].k == 2
    with pytest.raises(BadInput, match=r"train\.from names ~nobody/sae, which holds no cfg\.json"):
        imported.load(From(folder="~nobody/sae", sha256="0"), rows)


def hook(folder: Path, name: str) -> None:
    config = read_json(folder / "cfg.json")
    config["metadata"]["hook_name"] = name
    write_json(folder / "cfg.json", config)


def test_the_pin_is_of_both_files(tmp_path: Path) -> None:
    source, _ = foreign.saelens_topk(tmp_path / "source")
    main(str(source), str(tmp_path / "sae"))
    seen = {disk.fingerprint(tmp_path / "sae")}
    hook(tmp_path / "sae", "blocks.1.hook_resid_post")
    seen.add(disk.fingerprint(tmp_path / "sae"))
    with (tmp_path / "sae" / disk.WEIGHTS).open("ab") as file:
        file.write(b"\0")
    seen.add(disk.fingerprint(tmp_path / "sae"))
    assert len(seen) == 3


def test_knobs_say_what_the_sae_is(rows: Activations, tmp_path: Path) -> None:
    """Its controls are PCA with as many components as it has active latents, and as many latents untrained."""
    source, forward = foreign.saelens_uncentred(tmp_path / "source")
    main(str(source), str(tmp_path / "sae"))
    given: Any = knobs(**{"from": pinned(tmp_path / "sae").model_dump()})
    fitted, told, metadata = imported.take(given.from_, rows, given, 0, torch.device("cpu"))
    x, untrained = rows.read(200, 250).float(), fitted.untrained
    assert told.k == round(float((forward(x)[0] > 0).sum(1).float().mean())) > 4
    assert (told.latents, told.rule, told.lr) == (foreign.LATENTS, "jumprelu", given.lr)
    assert metadata == disk.load(tmp_path / "sae")[1]["metadata"]
    assert fitted.history == [] and untrained.latents == foreign.LATENTS and untrained.k == told.k
    again = imported.take(given.from_, rows, given, 0, torch.device("cpu"))[0].untrained
    other = imported.take(given.from_, rows, given, 1, torch.device("cpu"))[0].untrained
    assert torch.equal(untrained.encoder, again.encoder) and not torch.equal(untrained.encoder, other.encoder)


def test_what_it_said_of_itself_is_kept(rows: Activations, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not what was measured here as a fact of its training; and another model's name is said, once, and in the card."""
    source, _ = foreign.saelens_uncentred(tmp_path / "source")
    main(str(source), str(tmp_path / "sae"))
    config = read_json(tmp_path / "sae/cfg.json")
    config["metadata"] |= {"dataset_path": "some/text", "imported_from": {"hub": "someone/saes"}}
    write_json(tmp_path / "sae/cfg.json", config)
    given: Any = knobs(**{"from": pinned(tmp_path / "sae").model_dump()})
    capsys.readouterr()
    contexts: Any = SimpleNamespace(meta={"context": 128})
    for name in ("tiny", "tiny/lm"):
        rows.meta["model"] = MODEL | {"name": name}
        fitted, told, metadata = imported.take(given.from_, rows, given, 0, torch.device("cpu"))
        line = f"train: {tmp_path / 'sae'} is said to be for tiny/lm; it is judged on activations of tiny\n"
        assert capsys.readouterr().err == line * (name == "tiny")
        found = origin.metadata(rows, contexts, told, 4.5, metadata)
        assert "training_architecture_details" not in found and found["model_name"] == name
        assert found["strata"]["given"] == config["metadata"] and found["imported_from"] == {"hub": "someone/saes"}
        disk.save(tmp_path / name, fitted.best, found)
        main(str(tmp_path / name), str(tmp_path / "out" / name), "npz")
        text = (tmp_path / "out" / name / "README.md").read_text()
        assert f"| model | {name} |" in text and ("| said to be for | tiny/lm |" in text) == (name == "tiny")
    trained = origin.metadata(rows, contexts, given, 4.5, None)
    assert trained["training_architecture_details"] == {"k": given.k} and "given" not in trained["strata"]


def test_a_relu_of_saelens_needs_no_import(tmp_path: Path) -> None:
    source, forward = foreign.saelens_standard(tmp_path / "source")
    foreign.save_file(
        {name: t for name, t in foreign.load_file(source / disk.WEIGHTS).items() if name != "scaling_factor"},
        source / disk.WEIGHTS,
    )
    x = foreign.rows()
    assert torch.allclose(disk.load(source)[0].reconstruct(x)[0], forward(x)[1], rtol=1e-4, atol=1e-4)
