"""A script a stage. No stage depends on this file: nothing that a stage writes may depend on it."""

import gc
import os
import sys
from types import TracebackType


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End on Ctrl-C while modules are imported as `door.run` does later: without a traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)


# `python -m src.x` is about to import. What it imports stays, and looking through it for cycles again and again takes a
# fifth of a stage's start; strata/run/door.py ends that.
if sys.argv[0] == "-m":
    gc.disable()
    sys.excepthook = _told
