"""src.convert and the hub, through its own client: what is fetched with a file, and that nothing there is replaced."""

import os
import subprocess
import sys
from pathlib import Path

import foreign
import pytest
from hub import COMMIT, held, serving

from src.convert import main
from strata.sae import disk

ROOT = Path(__file__).resolve().parents[1]


def convert(home: Path, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    there = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_none", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", "src.convert", *words],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "0", **there},
    )  # fmt: skip


@pytest.mark.parametrize(
    "name, form, file",
    [
        ("dl_topk", "npz", "encoder.npz"),
        ("dl_jumprelu", None, "checkpoints/ae_1000.pt"),
        ("sparsify", None, "layers.3/sae.safetensors"),
        ("sparsify", None, "layers.3"),
    ],
)
def test_with_a_file_comes_what_it_needs(name: str, form: str | None, file: str, tmp_path: Path) -> None:
    source, forward = foreign.SOURCES[name](tmp_path / "source")
    if form:
        main(str(source), str(tmp_path / "made"), form)
    files = held(tmp_path / ("made" if form else "source"))
    others = {f"layer_4/{path}": content for path, content in files.items()} | {"layer_3/notes.txt": b"-"}
    with serving(saes={f"layer_3/{path}": content for path, content in files.items()} | others) as (address, _):
        run = convert(tmp_path / "home", address, f"hub:someone/saes/layer_3/{file}@v1", str(tmp_path / "out"))
    assert run.returncode == 0 and "there is no decoder.npz" not in run.stdout, run.stderr
    x = foreign.rows()
    sae, config = disk.load(tmp_path / "out")
    assert (sae.reconstruct(x)[0] - forward(x)[1]).norm() / forward(x)[1].norm() < 1e-5
    assert config["metadata"]["imported_from"]["folder"] == f"layer_3/{file}"
    snapshot = tmp_path / f"home/hub/models--someone--saes/snapshots/{COMMIT}"
    assert held(snapshot).keys() == {f"layer_3/{path}" for path in files if path != "README.md"}


def test_nothing_on_the_hub_is_written_over(tmp_path: Path) -> None:
    source, _ = foreign.dl_topk(tmp_path / "source")
    mine = {".gitattributes": b"", "README.md": b"mine", "layer_3/cfg.json": b"{}"}
    with serving(saes=dict(mine), empty={".gitattributes": b""}) as (address, there):
        for target in ("saes/layer_3", "saes"):
            run = convert(tmp_path / "home", address, str(source), f"hub:someone/{target}")
            sentence = f"convert: hub:someone/{target} has files already, and nothing is written over"
            assert run.returncode == 1 and run.stderr.startswith(sentence) and run.stderr.count("\n") == 1, run.stderr
        assert there.repos["someone/saes"] == mine and there.asked == []
        for target in ("saes/layer", "new", "empty"):
            run = convert(tmp_path / "home", address, str(source), f"hub:someone/{target}")
            assert run.returncode == 0, run.stderr
        assert there.repos["someone/saes"].items() > mine.items()
        assert {made["name"]: made["visibility"] for made in there.asked} == dict.fromkeys(
            ("saes", "new", "empty"), "public"
        )
        main(str(source), str(tmp_path / "here"))
        given = held(tmp_path / "here")
        for repo, folder in (("saes", "layer/"), ("new", ""), ("empty", "")):
            files = there.repos[f"someone/{repo}"]
            assert {name: files[folder + name] for name in given if name != "README.md"} == {
                name: content for name, content in given.items() if name != "README.md"
            }
        assert b"In the folder `layer` of `someone/saes`." in there.repos["someone/saes"]["layer/README.md"]
