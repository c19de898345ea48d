"""Training speed, side by side: Strata in this process, SAELens, dictionary_learning or sparsify in another, on the
same rows of real activations.

The two take turns, a piece of a few steps each, and while one runs the other sleeps: on a shared machine only
neighbours in time can be compared. The other runs whichever of its own options a short trial finds fastest for the row.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer import TOOLS, Peer, fastest, started
from benchmarks.pieces import BATCH, WARM_UP, Advance, Setting, Timed, pace, say
from benchmarks.saelens_training import ARCHITECTURES, DEAD_AFTER, GROUPS, LEARNING_RATE, cut_of
from strata.device.machine import Machine, keep_memory, start
from strata.rows.batches import Shuffled
from strata.rows.shards import Activations, open_activations
from strata.run import params
from strata.run.door import BadInput, run
from strata.sae.engine.preactivations import product_dtype
from strata.training.autoencoder import Autoencoder, Scale
from strata.training.knobs import Train
from strata.training.named import make_rule
from strata.training.rules.jumprelu import JumpReLU
from strata.training.trainer import Trainer

ROWS = 65536  # training rows that both sides shuffle
L0 = 32  # active latents a token
DENSE = 20  # the second relu row: one latent in so many is active
PIECE = 1.5  # seconds that a piece should take, if --steps does not say how many steps
BANDWIDTH = 0.05  # of jumprelu; SAELens's default


def strata(setting: Setting, activations: Activations) -> Advance:
    """Our training loop as `train` runs it, from stored shards on."""
    first, end = training_rows(activations)
    scale, section = Scale.of(activations), params.load("train", Train)
    model = Autoencoder(activations.width, setting.latents, torch.Generator().manual_seed(0))
    chosen = {
        "rule": setting.rule,
        "latents": setting.latents,
        "k": setting.l0,
        "groups": GROUPS,
        "bandwidth": BANDWIDTH,
        "l1_warmup": 0.0,
        "l1_delay": 0.0,
        "epochs": 100_000,  # the most that there may be: no end is reached, so that lr stays
        "batch_size": BATCH,
        "lr": LEARNING_RATE,
        "warmup": 0.0,
        "decay_from": 1.0,
        "auxk": 1 / 32,
        "auxk_latents": activations.width // 2,  # SAELens's number
        "dead_after": float(DEAD_AFTER),
        "wake": 0.0,
        "resample_every": None,
    }
    knobs = params.check({**section.model_dump(), **chosen}, Train, "benchmark")
    shuffled = Shuffled(activations, first, end, BATCH, knobs.window_rows, 0)
    batches = map(scale.apply, shuffled.endless())
    trainer = Trainer(model, make_rule(knobs), scale, knobs, shuffled.steps_per_epoch(), 0)
    trainer.advance(next(batches))  # starts the rule
    with torch.no_grad():
        if setting.rule in ("jumprelu", "relu"):  # the first batch alone does not place l0 well enough
            y = scale.apply(activations.read(first, end))
            cut = cut_of(lambda x: torch.addmm(model.b_enc, x, model.encoder.T), y, setting.l0)
            if isinstance(trainer.rule, JumpReLU):
                trainer.rule.threshold.fill_(cut)
            else:
                model.b_enc.sub_(cut)
    dead = torch.tensor(setting.dead, dtype=torch.long)

    def step() -> float:
        trainer.silent[dead] = (DEAD_AFTER + 1) * trainer.epoch_tokens
        return trainer.advance(next(batches)).active

    def advance(steps: int) -> Timed:
        before = time.perf_counter()
        l0 = [step() for _ in range(steps)]
        return Timed(time.perf_counter() - before, statistics.fmean(l0))

    return advance


def training_rows(activations: Activations) -> tuple[int, int]:
    """The first training row that is used, and the row after the last."""
    first, end = activations.split("train")
    if end - first < BATCH:
        raise BadInput(f"{activations.folder} has {end - first} training rows, fewer than a batch of {BATCH}")
    return first, min(end, first + ROWS)


def measure(
    setting: Setting, activations: Activations, peer: Peer | None, rounds: int, steps: int | None, compiled: bool
) -> dict[str, Any]:
    """One row of the table. Speeds in tokens/s; a ratio is ours over theirs, of two pieces that followed each other."""
    sides: dict[str, Advance | None] = {"ours": strata(setting, activations)}
    choice, trials = None, []
    if peer:
        sides["peer"], choice, trials = fastest(peer, setting, steps, compiled)

    # Pieces are timed in turns, so that a change of the machine's speed meets both sides.
    present = {name: advance for name, advance in sides.items() if advance}
    present["ours"](WARM_UP)
    count = {name: steps or pace(advance, PIECE) for name, advance in present.items()}
    pieces: dict[str, list[Timed]] = {name: [] for name in present}
    for _ in range(rounds):
        for name, advance in present.items():
            pieces[name].append(advance(count[name]))

    speeds = {name: [count[name] * BATCH / timed.seconds for timed in found] for name, found in pieces.items()}
    row: dict[str, Any] = {
        "rule": setting.rule,
        "latents": setting.latents,
        "l0": setting.l0,
        "dead": len(setting.dead),
        "ratio": None,
    }
    if len(present) == 2:
        ratios = [mine / theirs for mine, theirs in zip(speeds["ours"], speeds["peer"], strict=True)]
        row |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}

    for name in ("ours", "peer"):
        found, there = speeds.get(name), name in present
        l0 = statistics.fmean(timed.l0 for timed in pieces[name]) if there else None
        row |= {
            name: statistics.median(found) if found else None,
            f"{name}_min": min(found) if found else None,
            f"{name}_max": max(found) if found else None,
            f"{name}_l0": l0,
            f"{name}_steps": count.get(name),
        }
        if l0 is not None and abs(l0 / setting.l0 - 1) > 0.1:
            say(f"  the l0 of {name} is {l0:.1f}, not {setting.l0}")

    row |= {"peer_setting": choice, "peer_trials": trials}
    say(json.dumps({name: value for name, value in row.items() if name != "peer_trials"}))
    return row


def settings(rules: list[str], latents: list[int], dead: float) -> Iterator[Setting]:
    """The rows of the table; ``dead`` is the share of latents that are, spread evenly."""
    for rule in rules:
        for count in latents:
            number = round(dead * count)
            marked = [index * count // number for index in range(number)]
            for l0 in dict.fromkeys([L0, count // DENSE] if rule == "relu" else [L0]):
                yield Setting(rule, count, l0, marked)


def machine(threads: int) -> dict[str, Any]:
    """Where this was measured."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "threads": threads,
        "torch": torch.__version__,
        "selection": str(product_dtype(torch.device("cpu"), 2**30)).removeprefix("torch."),
    }


def check(given: argparse.Namespace) -> None:
    """Turn away numbers that make no sense."""
    for name in ("rounds", "threads", "steps"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name} is {value}, but must be at least 1")
    if not 0 <= given.dead < 1:
        raise BadInput(f"--dead is {given.dead}, but must be a share of the latents, from 0 to less than 1")
    if low := [count for count in given.latents if count < DENSE * L0 or count % 8]:
        raise BadInput(f"--latents is {low[0]}, but must be a multiple of 8 and at least {DENSE * L0}")


def main(*words: str) -> None:
    """Print one JSON object: the machine, and a row for each rule, number of latents and l0. Speeds in tokens/s."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=main.__doc__)
    parser.add_argument("--rules", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--latents", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--rounds", type=int, default=5, help="pieces of each side")
    parser.add_argument("--steps", type=int, help=f"steps of a piece; without it, as many as take {PIECE} s")
    parser.add_argument("--dead", type=float, default=0.0, help="share of latents for AuxK, e.g. 0.0625")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activations", type=Path, default=Path("data/activations/9"))
    peers = parser.add_mutually_exclusive_group()
    for tool in TOOLS:
        peers.add_argument(f"--{tool}", metavar="PYTHON", help=f"the Python that has {tool}; without any, ours alone")
    parser.add_argument(
        "--compile", action="store_true", help="also try the fastest option of SAELens with compile_sae"
    )
    given = parser.parse_args(words)
    check(given)
    start(Machine(device="cpu", threads=given.threads, save_every=60))
    keep_memory()  # as train does
    activations = open_activations(given.activations)
    wanted = list(settings(given.rules, given.latents, given.dead))

    def rows(peer: Peer | None) -> list[dict[str, Any]]:
        return [measure(one, activations, peer, given.rounds, given.steps, given.compile) for one in wanted]

    first, end = training_rows(activations)
    found = {
        "machine": machine(given.threads),
        "peer": None,
        "activations": {"layer": activations.layer, "width": activations.width, "rows": end - first},
        "batch": BATCH,
        "rounds": given.rounds,
    }
    if tool := next((tool for tool in TOOLS if getattr(given, tool)), None):
        same = Scale.of(activations).apply(activations.read(first, end))
        with started(tool, getattr(given, tool), same, given.threads) as peer:
            found |= {"peer": peer.facts, "rows": rows(peer)}
    else:
        found["rows"] = rows(None)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run(main, options=True)
