"""Several processes of a stage write the same bytes as one: the stages themselves, started by torchrun."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import save_tiny_lm
from test_extract import corpus
from test_kill import ROOT, everything, steps_done
from test_train import knobs

from stages.select import layers
from strata.corpus.read import SPLITS
from strata.device import launch
from strata.run import files, params
from strata.run.door import BadInput
from strata.training.autoencoder import Autoencoder, Scale
from strata.training.knobs import Train
from strata.training.named import make_rule
from strata.training.trainer import Trainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]  # PATH does not matter
TWO = shlex.join([*TORCHRUN, "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"])
EXTRACT = ["src.extract", "data/lm", "data/corpus", "data/layers/extracted.json"]
TRAIN = ["src.train", *(f"data/activations/{name}" for name in ("1", "tokens")), "data/lm"]
TRAIN += ["data/best.yaml", "data/layers/1.json"]
RULES = ("batchtopk", "jumprelu")


class Runs:
    """Stages that run in a project, several at once if need be, each with params of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self, words: list[str], launcher: str = "", **train: object) -> subprocess.Popen[str]:
        content = params.read(ROOT / "params.yaml")
        small = {"latents": 256, "k": 4, "bandwidth": 0.3, "batch_size": 60, "ce_tokens": 100, "auxk_latents": 8}
        content["train"] |= {**small, "dead_after": 0.3, "resample_every": 2, "micro_batches": 4, "epochs": 6, **train}
        content["extract"] |= {"tokens": 2000, "context": 8, "batch_size": 7, "dtype": "float32", "shard_rows": 128}
        content |= {"layers": [1, 3], "machine": {"device": "cpu", "threads": 1, "save_every": 0}}
        home = self.root / f"run-{len(list(self.root.glob('run-*')))}"
        home.mkdir()
        (home / "params.yaml").write_text(yaml.safe_dump(content))
        (home / "data").symlink_to(self.root / "data")
        env = {**os.environ, "PYTHONPATH": str(ROOT), "STRATA_TRACKING": "off", "DVC_ROOT": str(self.root)}
        command = [sys.executable, "-m", *words]
        return subprocess.Popen(
            command, cwd=home, env={**env, "STRATA_LAUNCH": launcher}, stderr=subprocess.PIPE, text=True
        )

    def train(self, target: str, launcher: str = "", **changes: object) -> subprocess.Popen[str]:
        outs = [str(self.root / target / name) for name in ("sae", "report.json", "curve.csv")]
        return self.start([*TRAIN, *outs], launcher, **changes)


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        said = process.communicate()[1]
        assert process.returncode == 0, said


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A tiny model, a text, and what one process extracts from them."""
    root = tmp_path_factory.mktemp("launch")
    for house in ("stages", "strata"):
        (root / house).symlink_to(ROOT / house)  # with what Numba compiled for other tests
    lm = save_tiny_lm(root / "data" / "lm", "gpt2")
    facts = {
        "kind": "language",
        "stored": "folder",
        "name": "tiny",
        "revision": None,
        "fingerprint": "abc",
        "trust_remote_code": False,
    }
    files.write_json(lm / "meta.json", {**facts, "blocks": 4, "width": 32, "dtype": "float32", "bytes": 10**5})
    texts = corpus(300)
    rows = [{**d, "title": "", "label": None, "split": split} for split in SPLITS for d in texts[split]]
    (root / "data" / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), table := root / "data" / "corpus" / "corpus.parquet")
    counts = {split: len(texts[split]) for split in SPLITS}
    meta = {"documents": len(rows), "splits": counts, "sha256": files.sha256(table)}
    files.write_json(root / "data" / "corpus" / "meta.json", meta)
    files.write_json(root / "data" / "layers" / "1.json", {})
    layers.write_extracted(root / "data" / "layers", [1, 3])
    files.write_text(root / "data" / "best.yaml", "skipped: true\n")
    runs = Runs(root)
    end(runs.start([*EXTRACT, "data/activations"]))
    return runs


@pytest.fixture(scope="module")
def alone(runs: Runs) -> dict[str, dict[str, str]]:
    """Rule -> the hashes of all that one process writes."""
    end(*(runs.train(f"alone/{rule}", rule=rule) for rule in RULES))
    return {rule: everything(runs.root / "alone" / rule) for rule in RULES}


@pytest.mark.slow
def test_two_processes_write_the_same_shards(runs: Runs):
    end(runs.start([*EXTRACT, str(runs.root / "two")], TWO))
    found = everything(runs.root / "two")
    assert found == everything(runs.root / "data" / "activations")
    assert len(found) > 30 and "3/shard-00015.safetensors" in found and "1/meta.json" in found
    assert not list((runs.root / ".scratch").glob("extract-*"))


@pytest.mark.slow
def test_two_processes_train_the_same_sae(runs: Runs, alone: dict[str, dict[str, str]]):
    end(*(runs.train(f"two/{rule}", TWO, rule=rule) for rule in RULES))
    for rule in RULES:
        assert everything(runs.root / "two" / rule) == alone[rule]
        names = {"sae/cfg.json", "sae/sae_weights.safetensors", "sae/final/sae_weights.safetensors", "report.json"}
        assert names <= set(alone[rule])
        header, *lines = (runs.root / "alone" / rule / "curve.csv").read_text().splitlines()
        curve = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
        assert max(float(row["dead"]) for row in curve[: len(curve) // 2]) > 0  # AuxK had something to do,
        assert any(float(row["validation_dead"] or 0) > 0 for row in curve[:-1])  # and so had resampling
    assert not list((runs.root / ".scratch").glob("train-*"))


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed(runs: Runs, alone: dict[str, dict[str, str]]):
    process = runs.train("killed", TWO, rule="batchtopk")
    while steps_done(runs.root) < 20:
        assert process.poll() is None
        time.sleep(0.001)
    group = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in group:
        member.kill()
    process.communicate()
    psutil.wait_procs(group)
    assert steps_done(runs.root) >= 20 and not (runs.root / "killed").exists()
    end(runs.train("killed", rule="batchtopk"))
    assert everything(runs.root / "killed") == alone["batchtopk"]


@pytest.mark.slow
def test_more_processes_than_micro_batches_is_one_sentence(runs: Runs):
    """Each process finds out by itself, before they meet: the second is not needed here."""
    process = runs.train("refused", f"env RANK=0 WORLD_SIZE=2 {sys.executable}", micro_batches=1)
    assert process.communicate()[1] == (
        "train: params.yaml: train.micro_batches is 1, which the 2 processes of STRATA_LAUNCH cannot share equally; "
        "set it to a multiple of 2, or start fewer processes\n"
    )
    assert process.returncode == 1 and not (runs.root / "refused").exists()


@pytest.mark.parametrize("command, why", [("no-such-program -n 2", "No such file"), ("torchrun '", "No closing quot")])
def test_what_cannot_be_started_is_one_sentence(command: str, why: str, monkeypatch: pytest.MonkeyPatch):
    def never() -> None:
        raise AssertionError

    monkeypatch.setenv("STRATA_LAUNCH", command)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(BadInput, match=rf"STRATA_LAUNCH is .*{command[:8]}.*, which cannot be started \({why}"):
        launch.several(never)()


def test_shares_are_neighbours_and_equal(monkeypatch: pytest.MonkeyPatch):
    assert launch.share(3, "a.b") == range(3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert launch.share(6, "a.b") == range(2, 4)
    for parts in (1, 4):
        with pytest.raises(BadInput, match=rf"a.b is {parts}, which the 3 processes .* multiple of 3, or start fewer"):
            launch.share(parts, "a.b")


def test_each_process_has_a_cuda_device_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    cpu, cuda, first = map(torch.device, ("cpu", "cuda", "cuda:0"))
    assert launch.local_device(cuda) == cuda
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (launch.local_device(cpu), launch.local_device(cuda)) == (cpu, torch.device("cuda:1"))
    with pytest.raises(BadInput, match=r"starts 2 processes here, .* machine.device \(cuda:0\) gives 1; start fewer"):
        launch.local_device(first)


def test_micro_batches_must_divide_the_batch():
    with pytest.raises(BadInput, match=r"params.yaml: train.*: micro_batches is 3; it must divide batch_size \(256\)"):
        knobs(micro_batches=3)


def stepped(plan: Train, steps: int = 1) -> Trainer:
    """A trainer after its first steps."""
    model = Autoencoder(32, plan.latents, torch.Generator().manual_seed(0))
    trainer = Trainer(model, make_rule(plan), Scale(1.0, torch.zeros(32), 1.0), plan, 100, 0)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        trainer.advance(torch.randn(plan.batch_size, 32, generator=random))
    return trainer


@pytest.mark.parametrize("rule", ["relu", "gated", "topk"])
def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(rule: str):
    """For the rules that treat each row by itself."""
    whole, parts = (stepped(knobs(rule=rule, micro_batches=number, l1_warmup=0.0)) for number in (1, 4))
    pairs = zip(*(trainer.optimizer.parameters for trainer in (whole, parts)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)
    assert torch.equal(whole.silent, parts.silent)


def test_buffers_become_the_mean_over_micro_batches():
    trainer = stepped(knobs(rule="batchtopk", micro_batches=2), steps=3)
    rule, guesses = trainer.rule, []
    (guess,) = rule.buffers()
    begin = guess.clone()
    y = torch.randn(256, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for part in y.split(128):
            guess.copy_(begin)
            trainer.model(part, rule, trainer.generator())
            guesses.append(guess.clone())
    guess.copy_(begin)
    trainer.advance(y)
    assert guesses[0] != guesses[1]
    torch.testing.assert_close(guess, (guesses[0] + guesses[1]) / 2)


def test_micro_batches_draw_their_own():
    trainer = stepped(knobs(micro_batches=4))
    drawn = [torch.rand(4, generator=trainer.generator(number)) for number in range(4)]
    assert len({tuple(values.tolist()) for values in drawn}) == 4
