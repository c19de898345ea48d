"""kill -9 in the middle of training: the stage started again ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import save_tiny_lm
from safetensors.torch import load
from test_extract import extract
from test_extract import knobs as extract_knobs

from strata.rows.shards import open_activations
from strata.run import files, params

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
STEPS = 500


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage train reads: shards of a tiny model, the model, params."""
    root = tmp_path_factory.mktemp("kill")
    lm = save_tiny_lm(root / "data" / "lm", "gpt2")
    extract(root / "data" / "activations", lm, [1], extract_knobs())
    meta = files.read_json(root / "data" / "activations" / "1" / "meta.json")
    files.write_json(
        lm / "meta.json", {"kind": "language", "stored": "folder", "trust_remote_code": False, **meta["model"]}
    )
    files.write_json(root / "data" / "layers" / "1.json", {})
    files.write_text(root / "best.yaml", "skipped: true\n")
    return root


def write_params(root: Path, rule: str) -> None:
    first, end = open_activations(root / "data" / "activations" / "1").split("train")
    batch = 64
    content = params.read(ROOT / "params.yaml")
    small = {"latents": 64, "k": 4, "bandwidth": 0.3, "batch_size": batch, "ce_tokens": 0, "auxk_latents": 8}
    content["train"] |= {**small, "rule": rule, "epochs": STEPS // ((end - first) // batch), "keep_every": 50}
    content["machine"] |= {"threads": 1, "save_every": 0}
    (root / "params.yaml").write_text(yaml.safe_dump(content))


def start(root: Path, target: str) -> subprocess.Popen[bytes]:
    words = ["data/activations/1", "data/activations/tokens", "data/lm", "best.yaml", "data/layers/1.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "STRATA_TRACKING": "off"}
    outs = [f"{target}/sae", f"{target}/report.json", f"{target}/curve.csv"]
    with (root / "said").open("wb") as said:
        return subprocess.Popen([sys.executable, "-m", "src.train", *words, *outs], cwd=root, env=env, stderr=said)


def steps_done(root: Path) -> int:
    """Where the state of the unfinished training stands; 0 without one."""
    for state in (root / ".scratch").glob("train-1-*/state.safetensors"):
        try:
            return int(load(state.read_bytes())["counts"][0])  # opened once: it is replaced at every moment
        except FileNotFoundError:
            return 0
    return 0


def everything(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): files.sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("rule", ["batchtopk", "jumprelu"])
def test_killed_at_five_random_steps(project: Path, rule: str):
    write_params(project, rule)
    whole = start(project, f"{rule}/whole")
    assert whole.wait() == 0, (project / "said").read_text()
    assert not list((project / ".scratch").glob("train-*"))

    for step in sorted(random.Random(rule).sample(range(1, STEPS - 100), 5)):
        process = start(project, f"{rule}/pieces")
        while steps_done(project) < step:
            assert process.poll() is None, (project / "said").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (project / rule / "pieces").exists()
    last = start(project, f"{rule}/pieces")
    assert last.wait() == 0, (project / "said").read_text()
    found = everything(project / rule / "pieces")
    assert found == everything(project / rule / "whole")
    assert {"sae/sae_weights.safetensors", "sae/final/sae_weights.safetensors", "report.json"} <= set(found)


def test_the_state_of_other_params_is_not_used(project: Path):
    write_params(project, "topk")
    process = start(project, "other")
    while steps_done(project) < 10:
        assert process.poll() is None, (project / "said").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (state,) = (project / ".scratch").glob("train-1-*/")
    content = params.read(project / "params.yaml")
    content["train"] |= {"lr": 0.002, "epochs": 1}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    process = start(project, "other")
    assert process.wait() == 0
    said = (project / "said").read_text()
    assert f"train-1: .scratch/{state.name} was not used: it is of other inputs, params or code" in said
    assert steps_done(project) >= 10  # it is left alone
