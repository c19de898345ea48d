"""What training makes of equally many tokens, beside SAELens: held-out error and dead latents, by rule, lr and seed.

SAELens trains in another process, by its own `fit`, on the rows that ours trains on, on the same scale; both results
are measured here, by `strata/measure/quality.py`. SAELens gets four things beyond its defaults, each to its advantage:
lr falls to 0 over the last fifth of the steps, as in its tutorials; a latent counts as dead after as many tokens as
with ours (its default, 1000 steps, is longer than such a run, so that its AuxK would never act); jumprelu starts at the
wanted l0 (its own start is at hundreds); batchtopk and matryoshka get the threshold with k active latents a row on
validation rows, like ours. Nothing is timed.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.peer import Peer, Refused, started
from benchmarks.pieces import say
from benchmarks.training import machine
from strata.device.machine import Machine, start
from strata.measure import quality
from strata.rows.shards import Activations, open_activations
from strata.run import params
from strata.run.door import BadInput, run
from strata.sae.sae import SAE
from strata.training import training
from strata.training.autoencoder import Scale
from strata.training.knobs import BY_BATCH, knobs_of
from strata.verdict.targets import Targets

BATCH, LATENTS, K = 2048, 4096, 64
RULES = ("topk", "batchtopk", "jumprelu", "matryoshka")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FOLLOWED = {"saelens": 2, "ours": 1}  # learning rates, the best by validation, that go on to the other seeds


@dataclass(frozen=True)
class Job:
    """One training."""

    side: str
    rule: str
    lr: float
    seed: int
    tokens: int


class Bench:
    """Trains and measures one job after another; ``peer`` None: ours alone."""

    def __init__(self, activations: Activations, peer: Peer | None, **options: Any) -> None:
        self.activations, self.peer, self.options = activations, peer, options
        self.scale = Scale.of(activations)
        self.section, self.targets = params.load("train", dict), params.load("targets", Targets)

    def row(self, job: Job) -> dict[str, Any]:
        """What came of it, or why nothing did."""
        try:
            return {**asdict(job), **self._measured(self._ours(job) if job.side == "ours" else self._theirs(job))}
        except (BadInput, Refused) as refusal:
            return {**asdict(job), "error": str(refusal)}

    def _ours(self, job: Job) -> SAE:
        """params.yaml's knobs, but for the size and the learning rate; the last checkpoint, like SAELens's."""
        change = {"rule": job.rule, "latents": LATENTS, "k": K, "batch_size": BATCH, "lr": job.lr}
        epochs = job.tokens // epoch_tokens(self.activations)
        size = self.activations.size
        knobs = knobs_of(self.section, {}, {**change, "epochs": epochs}, self.activations.layer, size)
        return training.train(self.activations, knobs, self.targets, job.seed).saes["final"]

    def _theirs(self, job: Job) -> SAE:
        """SAELens's, which acts on y = s (x − μ), as one that acts on x."""
        assert self.peer is not None
        window = round(self.section["dead_after"] * epoch_tokens(self.activations) / BATCH)
        setting = {**asdict(job), **self.options, "latents": LATENTS, "l0": K, "window": window}
        t, s = self.peer.train(setting), self.scale.factor
        sae = SAE(
            encoder=t["W_enc"].T.contiguous(),
            b_enc=t["b_enc"] / s,
            decoder=t["W_dec"],
            b_dec=self.scale.mean + t["b_dec"] / s,
            k=K if job.rule == "topk" else None,
            threshold=t["threshold"] / s if job.rule != "topk" else None,
        )
        return training.with_threshold(sae, K, partial(self._blocks, "validation")) if job.rule in BY_BATCH else sae

    def _measured(self, sae: SAE) -> dict[str, float | None]:
        a = self.activations
        test, validation = (
            quality.reconstruction(sae.reconstruct, self._blocks(split), a.scale, a.median_norm)
            for split in ("test", "validation")
        )
        return {
            "fvu_inlier": test["fvu_inlier"],
            "fvu": test["fvu"],
            "l0": test["l0"],
            "dead": float((quality.firing_counts(sae, a.blocks(0, a.rows)) == 0).float().mean()),
            "dead_on_test": float((quality.firing_counts(sae, self._blocks("test")) == 0).float().mean()),
            "validation": validation["fvu_inlier"],
        }

    def _blocks(self, split: str) -> Iterator[Tensor]:
        return self.activations.blocks(*self.activations.split(split))


def epoch_tokens(activations: Activations) -> int:
    """Tokens of an epoch, in whole batches."""
    first, end = activations.split("train")
    return (end - first) // BATCH * BATCH


def by_rate(rows: list[dict[str, Any]], side: str, rule: str) -> dict[float, list[dict[str, Any]]]:
    """The trainings that came to an end, by learning rate."""
    found: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        if (row["side"], row["rule"]) == (side, rule) and "error" not in row:
            found.setdefault(row["lr"], []).append(row)
    return found


def plan(
    rows: list[dict[str, Any]], sides: list[str], rules: list[str], rates: list[float], seeds: list[int], tokens: int
) -> Iterator[Job]:
    """Every learning rate with the first seed, then the best ones with the others. ``rows`` grows meanwhile."""
    for rule in rules:
        for side in sides:
            yield from (Job(side, rule, lr, seeds[0], tokens) for lr in rates)
    for seed in seeds[1:]:
        for rule in rules:
            for side in sides:
                first = {lr: found[0]["validation"] for lr, found in by_rate(rows, side, rule).items()}
                best = sorted(first, key=first.__getitem__)[: FOLLOWED[side]]
                yield from (Job(side, rule, lr, seed, tokens) for lr in best)


def table(rows: list[dict[str, Any]], rules: list[str], seeds: int) -> list[dict[str, Any]]:
    """A line a rule: means over all seeds; ours at the rate that validation chose, SAELens's at its best on test."""
    lines = []
    for rule in rules:
        line: dict[str, Any] = {"rule": rule}
        for side, judge in (("ours", "validation"), ("saelens", "fvu_inlier")):
            whole = {lr: found for lr, found in by_rate(rows, side, rule).items() if len(found) == seeds}
            if whole:
                lr = min(whole, key=lambda lr: statistics.fmean(row[judge] for row in whole[lr]))
                means = {
                    name: statistics.fmean(row[name] for row in whole[lr]) for name in ("l0", "dead", "dead_on_test")
                }
                errors = [row["fvu_inlier"] for row in whole[lr]]
                line[side] = {"lr": lr, "fvu_inlier": statistics.fmean(errors), "by_seed": errors, **means}
        lines.append(line)
    return lines


def main(*words: str) -> None:
    """Print one JSON object: a row a training, and a table of means. Rows also go to --out, and are not made again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=main.__doc__)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, help="of a training, rounded to whole epochs; without it, 8 epochs")
    parser.add_argument("--decay", type=float, default=0.2, help="share of the steps over which SAELens's lr falls")
    parser.add_argument("--beta2", type=float, default=0.999, help="SAELens's; another value wants another --out")
    parser.add_argument("--autocast", action="store_true", help="SAELens in bfloat16 autocast, which is faster")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activations", type=Path, default=Path("data/activations/9"))
    parser.add_argument("--saelens", metavar="PYTHON", help="the Python that has SAELens; without it, ours alone")
    parser.add_argument("--out", type=Path, help="a file of one JSON row a line")
    given = parser.parse_args(words)
    start(Machine(device="cpu", threads=given.threads, save_every=60))
    activations = open_activations(given.activations)
    epoch = epoch_tokens(activations)
    if not epoch:
        raise BadInput(f"{activations.folder} has fewer training rows than a batch of {BATCH}")
    tokens = max(1, round(given.tokens / epoch)) * epoch if given.tokens else 8 * epoch
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out and given.out.exists() else []
    found = {"machine": machine(given.threads), "peer": None, "batch": BATCH, "latents": LATENTS, "k": K}

    def go(peer: Peer | None) -> None:
        bench, sides = (
            Bench(activations, peer, decay=given.decay, autocast=given.autocast, beta2=given.beta2),
            ["saelens", "ours"] if peer else ["ours"],
        )
        for job in plan(rows, sides, given.rules, given.rates, given.seeds, tokens):
            if any(asdict(job).items() <= row.items() for row in rows):
                continue
            rows.append(bench.row(job))
            say(json.dumps(rows[-1]))
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    print(json.dumps(rows[-1]), file=file)

    if given.saelens:
        same = Scale.of(activations).apply(activations.read(*activations.split("train")))
        with started("saelens", given.saelens, same, given.threads, BATCH) as peer:
            found["peer"] = peer.facts
            go(peer)
    else:
        go(None)
    mine = [row for row in rows if row["tokens"] == tokens]
    found |= {"tokens": tokens, "table": table(mine, given.rules, len(given.seeds)), "rows": mine}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run(main, options=True)
