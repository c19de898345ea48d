"""Another tool in a process of its own, at its fastest: our end of the line to its module in `TOOLS`."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.pieces import BATCH, WARM_UP, Advance, Setting, Timed, pace, say
from strata.run.door import BadInput
from strata.run.files import write_tensors

TOOLS = {
    "saelens": "benchmarks.saelens_training",
    "dictionary_learning": "benchmarks.others_training",
    "sparsify": "benchmarks.others_training",
}
TRIAL = 1.0  # seconds that a piece should take while an option is tried
TURNS = 3  # pieces of a trial; the fastest counts, which was disturbed least
ROOT = Path(__file__).parents[1]
MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}  # what `strata/device/machine.py` gives ours


class Refused(Exception):
    """The tool cannot do what it was asked; the message is its own."""


@dataclass(frozen=True)
class Peer:
    """The other process. ``facts``: its versions."""

    tool: str
    process: subprocess.Popen[str]
    facts: dict[str, Any]

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        found = talk(self, command)
        if "error" in found:
            raise Refused(found["error"])
        return found

    def build(self, name: str, setting: Setting, options: dict[str, Any]) -> Advance:
        """A fresh trainer of that name, warmed up."""
        self.ask({"build": {**asdict(setting), "options": options}, "as": name})
        self.ask({"run": WARM_UP, "as": name})
        return lambda steps: Timed(**self.ask({"run": steps, "as": name}))

    def train(self, setting: dict[str, Any]) -> dict[str, Tensor]:
        """The weights of a whole training; see `benchmarks/saelens_training.py`."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "sae.safetensors"
            self.ask({"train": setting, "to": str(path)})
            return load_file(path)

    def keep(self, *names: str) -> None:
        """Forget the trainers of other names."""
        self.ask({"keep": names})


def talk(peer: Peer, command: dict[str, Any] | None = None) -> dict[str, Any]:
    """One answer of the other process, after one command or unasked."""
    process = peer.process
    assert process.stdin is not None and process.stdout is not None
    try:
        if command is not None:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        raise BadInput(f"{peer.tool}'s process ended with exit code {process.wait()}; what it said is above")
    try:
        return json.loads(line)
    except ValueError:
        raise BadInput(f"the program of --{peer.tool} answers {line.strip()!r}; give the Python that has it") from None


@contextmanager
def started(tool: str, python: str, rows: Tensor, threads: int, batch: int = BATCH) -> Iterator[Peer]:
    """Start ``tool`` in its own environment, on the ``rows`` (row, width) that ours trains on, on the same scale."""
    if shutil.which(python) is None:
        raise BadInput(f"--{tool}: {python} is no program; give the Python that has it")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.safetensors"
        write_tensors(path, {"rows": rows})
        words = [python, "-m", TOOLS[tool], tool, str(path), str(batch), str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **MEMORY}, **pipes)
        try:
            peer = Peer(tool, process, {})
            peer.facts.update(talk(peer))
            yield peer
        finally:
            process.kill()  # it holds nothing that could be lost
            process.communicate()


def options(tool: str, rule: str) -> Iterator[dict[str, Any]]:
    """What a tool offers that changes its speed on a CPU, in its words; SAELens's sparse codes rule out rescaling."""
    if tool == "dictionary_learning":
        yield {}
    elif tool == "sparsify":
        yield from ({"optimizer": name} for name in ("adam", "signum"))
    else:
        for autocast in (False, True):
            if rule in ("jumprelu", "relu"):
                yield {"autocast": autocast, "compile": False}
                continue
            for sparse, rescale in ((False, True), (False, False), (True, False)):
                codes = {"use_sparse_activations": sparse, "rescale_acts_by_decoder_norm": rescale}
                yield {"autocast": autocast, "compile": False, **codes}


def fastest(
    peer: Peer, setting: Setting, steps: int | None, compiled: bool
) -> tuple[Advance | None, dict[str, Any] | None, list[dict[str, Any]]]:
    """The tool with the fastest of its options, those options, and every trial (tokens/s, or its error)."""
    trials: list[dict[str, Any]] = []
    ready: dict[int, tuple[Advance, int]] = {}
    choices: list[dict[str, Any]] = []

    def attempt(new: list[dict[str, Any]]) -> int | None:
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

    best = attempt(list(options(peer.tool, setting.rule)))
    if compiled and peer.tool == "saelens" and best is not None:
        best = attempt([{**choices[best], "compile": True}])
    for trial in trials:
        say(f"  {peer.tool} {json.dumps(trial)}")
    if best is None:
        return None, None, trials
    peer.keep(str(best))
    return ready[best][0], choices[best], trials
