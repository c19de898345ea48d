"""The command lines, a script for each stage and app.

No stage depends on this file, so nothing that a stage writes may depend on it.
"""

import gc
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType

TIMES = Path(".scratch/stages/seconds.json")  # how long each stage took when DVC last ran it


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End without a traceback on Ctrl-C while modules are imported; `door.run` does the same later."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)


def _announce(stage: str) -> None:
    """Say which stage of the pipeline DVC has started, and how long the stages from here on took the last time.

    DVC runs them in the order of dvc.yaml. It may find that some have not changed, so what is left is at most that; if
    one of them was never timed, nothing is said of it. The time of a stage is the time until DVC starts the next one.
    """
    from strata.run import params, progress, resume  # here, because only stages need them
    from strata.run.door import BadInput

    try:
        sections = params.read_yaml(Path("params.yaml"))
        layers = sections["layers"]
        entries = params.read_yaml(Path("dvc.yaml"))["stages"]
    except BadInput:
        return  # the stage reads params.yaml, too, and refuses it at its door
    order: list[str] = []
    for name, entry in entries.items():
        order += [f"{name}@{layer}" for layer in layers] if "matrix" in entry else [name]
    if stage not in order:
        return  # a stage of another project, which calls this one

    # The stages of one `dvc repro` have one process group, and come in that order.
    now, run, place = time.time(), os.getpgrp(), order.index(stage)
    noted = resume.kept_json(resume.main_root() / TIMES) or {}
    seconds: dict[str, float] = noted.get("seconds", {})
    if noted.get("run") == run and noted["stage"] in order[: place + 1]:
        seconds[noted["stage"]] = now - noted["began"]
    resume.keep_json(resume.main_root() / TIMES, {"run": run, "stage": stage, "began": now, "seconds": seconds})

    left = ""
    off = {name for name, section in sections.items() if isinstance(section, dict) and section.get("run") is False}
    to_run = [name for name in order[place:] if name.partition("@")[0] not in off]  # the others skip in seconds
    if all(name in seconds for name in to_run):
        minutes = math.ceil(sum(seconds[name] for name in to_run) / 60)
        left = f"; at most about {minutes} min left, going by earlier runs"
    progress.watch()
    progress.tell(f"stage {place + 1} of {len(order)}{left}")


# `python -m src.x` is about to import its modules. They stay in memory, and the garbage collector would look through
# them again and again, which takes a fifth of a stage's start. strata/run/door.py switches it on again.
if sys.argv[0] == "-m":
    gc.disable()
    sys.excepthook = _told
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of other packages would fill a log
    # With RANK this is one of several processes of a stage, which has been announced.
    if "DVC_STAGE" in os.environ and "RANK" not in os.environ:
        _announce(os.environ["DVC_STAGE"])
