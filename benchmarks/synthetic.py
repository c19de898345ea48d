"""How much of the true features every rule recovers of equally many tokens, beside SAELens: F1, MCC, uniqueness, l0.

The rows are those of `strata/synthetic/`: SynthSAEBench-16k at an eighth of its features (2,048 in width 256), with
dictionaries of 512 latents. SAELens trains in another process, by its own `fit`, on the rows that ours trains on, on
the same scale, with what `benchmarks/quality.py` gives it beyond its defaults. Both sides are scored here, on test
rows, as `sae_lens.synthetic` scores them (`benchmarks/synthetic_oracle.py`). Each side and rule tries equally many
settings with the first seed; the one with the best F1 on validation rows goes on to the other seeds. `reward` has no
counterpart. The control is a dictionary before training. The bytes of the rows depend on --threads, as all sums of
products do.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peer import Peer, Refused, started
from benchmarks.pieces import say
from benchmarks.training import machine
from strata.device.machine import Machine, start
from strata.evaluation.own import FREE
from strata.rows.batches import InMemory, in_memory
from strata.rows.size import Size
from strata.run import params
from strata.run.door import BadInput, run
from strata.run.files import write_tensors
from strata.sae.engine.pattern import joined
from strata.sae.sae import SAE, Codes
from strata.synthetic.config import Config
from strata.synthetic.rows import Drawn, Labelled, drawn
from strata.synthetic.scores import of_sae
from strata.synthetic.truth import draw
from strata.training import training
from strata.training.autoencoder import Scale
from strata.training.knobs import BY_BATCH, knobs_of

TRUTH, ROWS = 1001, 1000  # seeds of the true features and of the rows; trainings have others
TRAIN, EPOCHS = 524_288, 4  # rows, and how often each of them is read
VALIDATION, TEST = 8192, 16_384  # rows
AT_ONCE = 8  # chunks that are scored together
BATCH, LATENTS, K = 1024, 512, 7  # k: the 512 most frequent features have 8.4 active ones a row; the paper: 20 of 25
RULES = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated", "reward")
OURS_ALONE = ("reward",)
BY_L1 = ("relu", "gated")
SIDES = ("ours", "saelens")
RATES = (3e-3, 1e-3)
L1 = (2.0, 4.0, 1.0)  # of Σ err² + λ Σ |z| for a row, on both sides
L1_RATE = 3e-3
CONTROLS = ("f1", "mcc", "uniqueness")  # shown of the dictionary before training, which has top-k
SHOWN = ("f1", "precision", "recall", "mcc", "uniqueness", "dead", "l0", "l0_error", "fvu")


@dataclass(frozen=True)
class Job:
    """One training. ``l1``: None where the rule has no such weight."""

    side: str
    rule: str
    lr: float
    l1: float | None
    train: int  # rows, of which tokens / train epochs are seen
    tokens: int
    seed: int


class Bench:
    """Trains and scores one job after another; ``peer`` None: ours alone."""

    def __init__(self, rows: Drawn, kept: InMemory, peer: Peer | None) -> None:
        self.rows, self.kept, self.peer = rows, kept, peer
        self.scale, self.trained = Scale.of(kept), kept.split("train")[1]
        self.section = params.load("train", dict)
        self.labelled = {split: together(rows.labelled(*rows.split(split))) for split in ("test", "validation")}

    def row(self, job: Job) -> dict[str, Any]:
        """What came of it, or why nothing did."""
        try:
            sae, untrained = self._ours(job) if job.side == "ours" else (self._theirs(job), None)
        except (BadInput, Refused) as refusal:
            return {**asdict(job), "error": str(refusal)}

        test, validation = self._scores(sae, "test"), self._scores(sae, "validation")
        control = self._scores(untrained, "validation") if untrained else {}
        controls = {f"untrained_{name}": control[name] for name in CONTROLS if control}
        return {**asdict(job), **test, "validation_f1": validation["f1"], **controls}

    def _scores(self, sae: SAE, split: str) -> dict[str, Any]:
        return asdict(of_sae(sae, self.rows.truth.directions, self.labelled[split]))

    def _ours(self, job: Job) -> tuple[SAE, SAE]:
        """By params.yaml's knobs, but for size, lr and l1: the last checkpoint, like SAELens's, and the SAE before."""
        change = {
            "rule": job.rule, "latents": LATENTS, "k": K, "batch_size": BATCH, "lr": job.lr,
            "epochs": job.tokens // self.trained, "auxk_latents": LATENTS // 16, "log_every": 1000,
        }  # fmt: skip
        if job.l1 is not None:
            change["l1_coefficient"] = job.l1
        knobs = knobs_of(self.section, {}, change, 0, Size("language", self.trained, self.kept.width))
        fitted = training.train(self.kept, knobs, FREE, job.seed)
        return fitted.saes["final"], fitted.untrained

    def _theirs(self, job: Job) -> SAE:
        """SAELens's, which acts on y = s (x − μ), as one that acts on x."""
        assert self.peer is not None
        window = round(self.section["dead_after"] * self.trained / BATCH)
        setting = {
            **asdict(job), "latents": LATENTS, "l0": K, "window": window, "decay": 0.2,
            "beta2": 0.999, "autocast": False, "options": {} if job.l1 is None else {"l1_coefficient": job.l1},
        }  # fmt: skip
        t, s = self.peer.train(setting), self.scale.factor
        encoder, bias, threshold = t["W_enc"].T.contiguous(), t.get("b_enc"), t.get("threshold")
        if job.rule == "gated":  # one gate and one magnitude are a jumprelu of the magnitude
            gain = t["r_mag"].exp()
            encoder, bias, threshold = encoder * gain[:, None], t["b_mag"], t["b_mag"] - t["b_gate"] * gain
        assert bias is not None
        sae = SAE(
            encoder=encoder,
            b_enc=bias / s,
            decoder=t["W_dec"],
            b_dec=self.scale.mean + t["b_dec"] / s,
            k=K if job.rule == "topk" else None,
            threshold=(torch.zeros_like(bias) if threshold is None else threshold / s) if job.rule != "topk" else None,
        )
        blocks = partial(self.kept.blocks, *self.kept.split("validation"))
        return training.with_threshold(sae, K, blocks) if job.rule in BY_BATCH else sae


def together(blocks: Iterable[Labelled]) -> list[Labelled]:
    """The same rows in blocks of AT_ONCE chunks, which are scored faster."""
    parts, joint = list(blocks), []
    for first in range(0, len(parts), AT_ONCE):
        some = parts[first : first + AT_ONCE]
        codes = [part.activations for part in some]
        activations = Codes(torch.cat([code.values for code in codes]), joined([code.pattern for code in codes]))
        joint.append(Labelled(torch.cat([part.x for part in some]), activations))
    return joint


def settings(rule: str) -> list[dict[str, Any]]:
    """What is tried with the first seed."""
    if rule in BY_L1:
        return [{"lr": L1_RATE, "l1": weight} for weight in L1]
    return [{"lr": lr, "l1": None} for lr in RATES]


def plan(
    rows: list[dict[str, Any]], sides: list[str], rules: list[str], seeds: list[int], train: int, tokens: int
) -> Iterator[Job]:
    """Every setting with the first seed, then each side's best with the others. ``rows`` grows meanwhile."""
    pairs = [(rule, side) for rule in rules for side in sides if not (side == "saelens" and rule in OURS_ALONE)]
    for turn in range(max(len(settings(rule)) for rule in rules)):
        for rule, side in pairs:
            for setting in settings(rule)[turn : turn + 1]:
                yield Job(side, rule, **setting, train=train, tokens=tokens, seed=seeds[0])
    for seed in seeds[1:]:
        for rule, side in pairs:
            if (best := chosen(rows, side, rule, seeds[0])) is not None:
                yield Job(side, rule, **best, train=train, tokens=tokens, seed=seed)


def chosen(rows: list[dict[str, Any]], side: str, rule: str, seed: int) -> dict[str, Any] | None:
    """The setting with the best F1 on validation rows, once all are tried; None before."""
    tried = [row for row in rows if (row["side"], row["rule"], row["seed"]) == (side, rule, seed)]
    whole = [row for row in tried if "error" not in row]
    if len(tried) < len(settings(rule)) or not whole:
        return None
    best = max(whole, key=lambda row: row["validation_f1"])
    return {"lr": best["lr"], "l1": best["l1"]}


def table(rows: list[dict[str, Any]], rules: list[str], seeds: list[int]) -> list[dict[str, Any]]:
    """A line a rule and side: the mean over the seeds at the chosen setting, and F1 by seed."""
    lines = []
    for rule in rules:
        for side in SIDES:
            if (best := chosen(rows, side, rule, seeds[0])) is None:
                continue
            same = [row for row in rows if {"side": side, "rule": rule, **best}.items() <= row.items()]
            whole = [row for row in same if row["seed"] in seeds and "error" not in row]
            means = {name: statistics.fmean(row[name] for row in whole) for name in SHOWN}
            by_seed = [row["f1"] for row in sorted(whole, key=lambda row: row["seed"])]
            lines.append({"rule": rule, "side": side, **best, "seeds": len(whole), **means, "f1_by_seed": by_seed})
    return lines


def rows_of(path: Path | None, train: int) -> tuple[Drawn, InMemory]:
    """The rows by number, and in memory; from the file ``path``, which is written if it is not there."""
    rows = drawn(draw(Config(), torch.Generator().manual_seed(TRUTH)), train, VALIDATION, TEST, ROWS)
    if path is None:
        return rows, rows.kept()
    if not path.exists():
        write_tensors(path, {"x": rows.kept().x})
    x: Tensor = load_file(path)["x"]
    if len(x) != train + VALIDATION + TEST or not torch.equal(x[:256], rows.read(0, 256)):
        raise BadInput(f"{path} holds other rows; remove it")
    return rows, in_memory(x, rows.splits)


def main(*words: str) -> None:
    """Print one JSON object: a row a training, and a table of means. Rows also go to --out, and are not made again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic", description=main.__doc__)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--train", type=int, default=TRAIN, help="training rows, a multiple of the batch")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="a file that keeps the rows, so that they are drawn once")
    parser.add_argument("--minutes", type=float, default=1e9, help="of training on each side, after which none begins")
    parser.add_argument("--saelens", metavar="PYTHON", help="the Python that has SAELens; without it, ours alone")
    parser.add_argument("--out", type=Path, help="a file of one JSON row a line")
    given = parser.parse_args(words)
    start(Machine(device="cpu", threads=given.threads, save_every=60))

    if given.train % BATCH:
        raise BadInput(f"--train is {given.train}, but must be a multiple of {BATCH}")
    drawn_rows, kept = rows_of(given.rows, given.train)
    tokens = given.train * given.epochs
    earlier = given.out.read_text().splitlines() if given.out and given.out.exists() else []
    rows = [row for row in map(json.loads, earlier) if (row["tokens"], row.get("train")) == (tokens, given.train)]
    found = {"machine": machine(given.threads), "peer": None, "tokens": tokens, "latents": LATENTS, "k": K}

    def go(peer: Peer | None, sides: list[str]) -> None:
        bench, begun = Bench(drawn_rows, kept, peer), time.monotonic()
        for job in plan(rows, sides, given.rules, given.seeds, given.train, tokens):
            if any(asdict(job).items() <= row.items() for row in rows):
                continue
            if time.monotonic() - begun > 60 * given.minutes:
                return
            rows.append(bench.row(job))
            say(f"{time.monotonic() - begun:.0f} s {json.dumps(rows[-1])}")
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    print(json.dumps(rows[-1]), file=file)

    if "ours" in given.sides:
        go(None, ["ours"])
    if given.saelens and "saelens" in given.sides:
        same = Scale.of(kept).apply(kept.read(*kept.split("train")))
        with started("saelens", given.saelens, same, given.threads, BATCH) as peer:
            found["peer"] = peer.facts
            go(peer, ["saelens"])
    found |= {"table": table(rows, given.rules, given.seeds), "rows": rows}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run(main, options=True)
