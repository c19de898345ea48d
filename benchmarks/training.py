"""Training speed, side by side: Strata in this process, SAELens in another, on the same rows of real activations.

The two take turns, a piece of a few steps each, and while one runs the other sleeps: on a shared machine only
neighbours in time can be compared. SAELens runs whichever of its own options a short trial finds fastest for the row.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks.saelens_training import ARCHITECTURES, DEAD_AFTER, GROUPS, LEARNING_RATE, cut_of
from stages import params
from stages.door import BadInput, run
from stages.extract.shards import Activations, open_activations
from stages.files import write_tensors
from stages.sae.autoencoder import Autoencoder
from stages.sae.knobs import Train, make_rule
from stages.sae.preactivations import product_dtype
from stages.sae.rules.jumprelu import JumpReLU
from stages.sae.trainer import Trainer
from stages.train.batches import Shuffled
from stages.train.train import scale_of

BATCH = 4096  # rows of a step
ROWS = 65536  # training rows that both sides shuffle
L0 = 32  # active latents a token
DENSE = 20  # the second relu row: one latent in so many is active
PIECE = 1.5  # seconds that a piece should take, if --steps does not say how many steps
TRIAL = 1.0  # the same for trying an option of SAELens
BANDWIDTH = 0.05  # of jumprelu; SAELens's default
TURNS = 3  # pieces of a trial; the fastest counts, which was disturbed least
WARM_UP = 1  # steps; one more goes into finding the length of a piece
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Setting:
    """A row of the table. ``l0``: active latents a token. ``dead``: the latents that AuxK is to revive.

    SAELens has no AuxK for jumprelu and relu; ours has it for every rule.
    """

    rule: str
    latents: int
    l0: int
    dead: list[int]


class Timed(NamedTuple):
    """How long some steps took, and the mean l0 of their batches."""

    seconds: float
    l0: float


Advance = Callable[[int], Timed]  # takes so many steps


class Refused(Exception):
    """SAELens cannot do what it was asked; the message is its own."""


def strata(setting: Setting, activations: Activations) -> Advance:
    """Our training loop as `train` runs it, from stored shards on."""
    first, end = training_rows(activations)
    scale, section = scale_of(activations), params.load("train", Train)
    model = Autoencoder(activations.width, setting.latents, torch.Generator().manual_seed(0))
    chosen = {
        "rule": setting.rule,
        "latents": setting.latents,
        "k": setting.l0,
        "groups": GROUPS,
        "bandwidth": BANDWIDTH,
        "l1_warmup": 0.0,
        "l1_delay": 0.0,
        "epochs": 1_000_000,  # no end is reached, so that lr stays
        "batch_size": BATCH,
        "lr": LEARNING_RATE,
        "warmup": 0.0,
        "decay_from": 1.0,
        "auxk": 1 / 32,
        "auxk_latents": activations.width // 2,  # SAELens's number
        "dead_after": float(DEAD_AFTER),
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


@dataclass(frozen=True)
class SAELens:
    """The other process. ``facts``: its versions."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        found = talk(self.process, command)
        if "error" in found:
            raise Refused(found["error"])
        return found

    def build(self, name: str, setting: Setting, options: dict[str, bool]) -> Advance:
        """A fresh trainer of that name, warmed up."""
        self.ask({"build": {**asdict(setting), "options": options}, "as": name})
        self.ask({"run": WARM_UP, "as": name})
        return lambda steps: Timed(**self.ask({"run": steps, "as": name}))

    def keep(self, *names: str) -> None:
        """Forget the trainers of other names."""
        self.ask({"keep": names})


def talk(process: subprocess.Popen[str], command: dict[str, Any] | None = None) -> dict[str, Any]:
    """One answer of the other process, after one command or unasked."""
    assert process.stdin is not None and process.stdout is not None
    try:
        if command is not None:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        raise BadInput(f"SAELens's process ended with exit code {process.wait()}; what it said is above")
    try:
        return json.loads(line)
    except ValueError:
        raise BadInput(f"the program of --saelens answers {line.strip()!r}; give the Python that has SAELens") from None


@contextmanager
def saelens(python: str, activations: Activations, threads: int) -> Iterator[SAELens]:
    """Start SAELens in its own environment, on the rows that ours trains on, on the same scale."""
    if shutil.which(python) is None:
        raise BadInput(f"--saelens: {python} is no program; give the Python that has SAELens")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.safetensors"
        write_tensors(path, {"rows": scale_of(activations).apply(activations.read(*training_rows(activations)))})
        words = [python, "-m", "benchmarks.saelens_training", str(path), str(BATCH), str(threads)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            yield SAELens(process, talk(process))
        finally:
            process.kill()  # it holds nothing that could be lost
            process.communicate()


def options(rule: str) -> Iterator[dict[str, bool]]:
    """What SAELens offers that changes its speed, in its own words; sparse codes rule out rescaling."""
    for autocast in (False, True):
        if rule in ("jumprelu", "relu"):
            yield {"autocast": autocast, "compile": False}
            continue
        for sparse, rescale in ((False, True), (False, False), (True, False)):
            codes = {"use_sparse_activations": sparse, "rescale_acts_by_decoder_norm": rescale}
            yield {"autocast": autocast, "compile": False, **codes}


def fastest(
    peer: SAELens, setting: Setting, steps: int | None, compiled: bool
) -> tuple[Advance | None, dict[str, bool] | None, list[dict[str, Any]]]:
    """SAELens with the fastest of its options, those options, and every trial (tokens/s, or its error)."""
    trials: list[dict[str, Any]] = []
    ready: dict[int, tuple[Advance, int]] = {}
    choices: list[dict[str, bool]] = []

    def attempt(new: list[dict[str, bool]]) -> int | None:
        """Try ``new`` options in turns; the number of the fastest of all so far."""
        for choice in new:
            number = len(choices)
            choices.append(choice)
            trials.append({**choice, "tokens_per_second": None, "error": None})
            try:
                advance = peer.build(str(number), setting, choice)
                ready[number] = advance, steps or pace(advance, TRIAL)
            except Refused as refusal:
                trials[number]["error"] = str(refusal)
        added = [number for number in ready if choices[number] in new]
        for number in added * TURNS:
            advance, count = ready[number]
            speed = count * BATCH / advance(count).seconds
            trials[number]["tokens_per_second"] = max(trials[number]["tokens_per_second"] or 0, speed)
        return max(ready, key=lambda number: trials[number]["tokens_per_second"], default=None)

    best = attempt(list(options(setting.rule)))
    if compiled and best is not None:
        best = attempt([{**choices[best], "compile": True}])
    for trial in trials:
        say(f"  SAELens {json.dumps(trial)}")
    if best is None:
        return None, None, trials
    peer.keep(str(best))
    return ready[best][0], choices[best], trials


def pace(advance: Advance, seconds: float) -> int:
    """How many steps take about so many seconds."""
    return max(1, round(seconds / advance(1).seconds))


def measure(
    setting: Setting, activations: Activations, peer: SAELens | None, rounds: int, steps: int | None, compiled: bool
) -> dict[str, Any]:
    """One row of the table. Speeds in tokens/s; a ratio is ours over theirs, of two pieces that followed each other."""
    sides: dict[str, Advance | None] = {"ours": strata(setting, activations)}
    choice, trials = None, []
    if peer:
        sides["peer"], choice, trials = fastest(peer, setting, steps, compiled)
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


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


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
    parser.add_argument("--saelens", metavar="PYTHON", help="the Python that has SAELens; without it, ours alone")
    parser.add_argument(
        "--compile", action="store_true", help="also try the fastest option of SAELens with compile_sae"
    )
    given = parser.parse_args(words)
    check(given)
    torch.set_num_threads(given.threads)
    activations = open_activations(given.activations)
    wanted = list(settings(given.rules, given.latents, given.dead))

    def rows(peer: SAELens | None) -> list[dict[str, Any]]:
        return [measure(one, activations, peer, given.rounds, given.steps, given.compile) for one in wanted]

    first, end = training_rows(activations)
    found = {
        "machine": machine(given.threads),
        "peer": None,
        "activations": {"layer": activations.layer, "width": activations.width, "rows": end - first},
        "batch": BATCH,
        "rounds": given.rounds,
    }
    if given.saelens:
        with saelens(given.saelens, activations, given.threads) as peer:
            found |= {"peer": peer.facts, "rows": rows(peer)}
    else:
        found["rows"] = rows(None)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run(main)
