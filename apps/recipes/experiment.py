"""Run one `dvc exp run`, after which params.yaml still has its comments, or is as it was before."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recipes import checkout, comments
from apps.recipes.check import Asked
from apps.recipes.words import alike
from stages.report.scorecard import failures
from strata.run.door import BadUsage
from strata.run.files import read_json, write_text
from strata.run.params import parse_yaml

CARD = Path("reports/scorecard.json")
BACK = "git checkout HEAD -- params.yaml dvc.lock reports/summary.json && dvc checkout"
DVCS_OWN = {"-m": "--message", "-C": "--copy-paths", "-j": "--jobs"}  # other options of `dvc exp run` with a value


@dataclass(frozen=True)
class Line:
    """The words of a command line, sorted.

    ``changes``: those of -S. ``stages``: those to which the run is limited; none: the whole pipeline. ``rest``: the
    stages, and options that only DVC understands. ``elsewhere``: whether the working tree stays as it is, because the
    experiment runs later, in a folder of its own, or not at all.
    """

    changes: list[str]
    name: str | None
    queue: bool
    elsewhere: bool
    stages: list[str]
    rest: list[str]

    @property
    def reports(self) -> bool:
        """Whether the run makes the report anew."""
        return not self.stages or not {"report", "track"}.isdisjoint(self.stages)


def parsed(words: Iterable[str]) -> Line:
    """Sort the words of `dvc exp run`. A bare KEY=VALUE is read as -S KEY=VALUE. Raises BadUsage."""
    parser = argparse.ArgumentParser(prog="src.run", add_help=False, exit_on_error=False)
    parser.add_argument("-S", "--set-param", action="append", default=[])
    parser.add_argument("-n", "--name")
    for option in ("--queue", "--temp", "--dry"):
        parser.add_argument(option, action="store_true")
    for short, option in DVCS_OWN.items():
        parser.add_argument(short, option, action="append", default=[])
    try:
        known, rest = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        raise BadUsage(f"{error.argument_name}: {error.message}") from None

    changes = [*known.set_param, *(word for word in rest if "=" in word and not word.startswith("-"))]
    for word in changes:
        key, equals, _ = word.partition("=")
        if not equals and not key.startswith("~"):
            raise BadUsage(f"{word!r} is no KEY=VALUE, such as -S train.k=64")
        if ":" in key:
            raise BadUsage(f"{word!r} is of another file than params.yaml, which a recipe does not know")

    rest = [word for word in rest if word not in changes]
    stages = [word for word in rest if not word.startswith("-")]
    rest += ["--dry"] * known.dry + ["--temp"] * known.temp
    for option in DVCS_OWN.values():
        for value in getattr(known, option.removeprefix("--").replace("-", "_")):
            rest += [option, value]
    return Line(changes, known.name, known.queue, known.queue or known.temp or known.dry, stages, rest)


def run(asked: Asked, line: Line, name: str | None, base: str) -> None:
    """Run what is ``asked`` for as the experiment ``name``, over params.yaml with the text ``base``.

    Ends with DVC's exit code if that is not 0. Several experiments run in the background, from DVC's queue.
    """
    several = len(asked.values) > 1
    command = ["dvc", "exp", "run"]
    if name:
        command += ["--name", name]
    if several or line.queue:
        command.append("--queue")
    for word in asked.words:
        command += ["-S", word]

    elsewhere = several or line.elsewhere
    code = _kept(lambda: _dvc([*command, *line.rest]), base, None if elsewhere else asked.values[0])
    if code:
        sys.stderr.write(
            f"run: dvc ended with {code}, and params.yaml is as it was before; what had finished is kept, and the same "
            "command goes on from there\n"
        )
        raise SystemExit(code)

    if several and not line.queue:
        _start(len(asked.values))
    elif not elsewhere:
        if line.reports and (verdict := _verdict()):
            _say(verdict)
        if line.reports:
            _say("the report is reports/report.html")
        else:
            _say(f"{', '.join(line.stages)} ran, and no report: it and summary.json are older, until `dvc repro`")
        _say(f"to go back to the state before: {BACK}")


def _verdict() -> str | None:
    """How many targets pass and which fail; None where no report was written."""
    if not CARD.is_file():
        return None
    card = read_json(CARD)
    missed = failures(card)
    counted = f"{card['passed']} of {card['passed'] + card['failed']} targets pass"
    return f"{counted}; {'; '.join(missed)}" if missed else counted


def _start(number: int) -> None:
    """Start the ``number`` experiments of the queue, in the background."""
    if code := _dvc(["dvc", "queue", "start"]):
        raise SystemExit(code)
    _say(f"{number} experiments run one after another in the background; `dvc queue status` says how far they are")
    _say("when they have ended, `dvc exp show --only-changed` compares them, and `python -m src.pareto` draws them")


def _kept(job: Any, base: str, values: dict[str, Any] | None) -> int:
    """Call ``job``, which runs DVC, with the text ``base`` in params.yaml; return its exit code.

    DVC writes params.yaml anew. After a run that went well the file has ``values``, with the comments
    of ``base``. After any other run, and if ``values`` is None, it is as it was before.
    """
    checkout.unstage()  # DVC stumbles over a file of which git's index has another version than the folder
    before = checkout.PARAMS.read_text(encoding="utf-8")
    if before != base:
        write_text(checkout.PARAMS, base)

    after, code = before, 1
    try:
        code = job()
        if code == 0 and values is not None:
            left = checkout.PARAMS.read_text(encoding="utf-8")
            if alike(parse_yaml(left, checkout.PARAMS)) == alike(values):
                after = comments.changed(base, values, checkout.PARAMS) or left
            else:
                after = left  # other values than were asked for, perhaps the user's own edit: keep them
    finally:
        write_text(checkout.PARAMS, after)
        checkout.unstage()
    return code


def _dvc(command: Sequence[str]) -> int:
    """Show a command of DVC, run it with this Python, and return its exit code."""
    _say(shlex.join(command))
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}

    process: subprocess.Popen[bytes] | None = None

    def end(*_: object) -> None:
        """Send DVC and its stage what Ctrl-C would send. `process.wait` then waits until they have ended."""
        if process is not None:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(process.pid, signal.SIGINT)

    # Set before DVC starts: a signal that a shell's `&` had us ignore would be ignored by DVC, too; one with a handler
    # is as new for it.
    handlers = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # A process group of its own: Ctrl-C then reaches this process alone, and `end` passes it on, once.
        process = subprocess.Popen([sys.executable, "-m", *command], env=environment, process_group=0)
        return process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    """Write a line on stdout at once, so that it stands before what DVC writes."""
    sys.stdout.write(f"run: {line}\n")
    sys.stdout.flush()
