"""Select deletes what stages wrote for a dropped layer, and nothing else."""

import json
from pathlib import Path

import pytest
import small

from stages.select import stale

SAE = {"architecture": "topk", "d_in": 2, "d_sae": 4, "metadata": {}}
OURS: dict[str, object] = {  # of layer 9, which is dropped
    "data/sae/9/cfg.json": SAE,
    "data/sae/9/sae_weights.safetensors": "weights",
    "data/sae/9/final/cfg.json": SAE,
    "data/latents/9/meta.json": {"layer": 9},
    "data/latents/9/codes/shard-00000.safetensors": "codes",
    "data/explained/9/meta.json": {"layer": 9},
    "data/explained/9/names.parquet": "names",
    "data/steered/9/meta.json": {"skipped": True},
    "reports/train/9.json": {"layer": 9},
    "reports/train/9.csv": "step,fvu",
    "reports/explain/9.json": {"layer": 9},
    "reports/invert/9.json": {"skipped": True},
}
THEIRS: dict[str, object] = {
    "data/sae/9-my-notes/idea.txt": "a user's",
    "data/sae/9-my-notes/cfg.json": SAE,  # a copy of what was good
    "data/sae/12/weights.safetensors": "of another program",
    "data/latents/2024/meta.json": {"layer": 9},
    "data/latents/11/meta.json": "[]",
    "reports/train/2024.txt": "a user's",
    "reports/train/2024.json": {"sales": 1},
    "reports/train/2025.csv": "month,sales",
    "reports/train/9.json.bak": "a user's",
    "reports/train/notes.json": {"layer": 9},
    "data/sae/3/cfg.json": SAE,  # layer 3 is kept
    "reports/train/3.json": {"layer": 3},
    "data/layers/notes.json": {},
}


def lay(folder: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_what_stages_wrote_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    small.make(tmp_path)
    small.change(layers=[3])
    before = left(tmp_path)
    lay(tmp_path, OURS | THEIRS)
    small.run("select")
    written = {f"data/layers/{name}.json" for name in ("3", "3.last", "extracted", "layers")}
    assert left(tmp_path) == before | THEIRS.keys() | written
    assert not (tmp_path / "data/sae/9").exists() and not (tmp_path / "data/latents/9").exists()


def test_a_users_file_in_a_folder_of_ours_stays_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lay(tmp_path, OURS | {"data/sae/9/why.md": "a user's", "data/sae/9/tries/1.ipynb": "a user's"})
    stale.remove(tmp_path / "data/sae", [3])
    assert left(tmp_path / "data/sae") == {"9/why.md", "9/tries/1.ipynb"}
    assert capsys.readouterr().err == (
        f"select: {tmp_path}/data/sae/9 stays, because not all of it was written by a stage\n"
    )
    stale.remove(tmp_path / "data/nowhere", [3])
