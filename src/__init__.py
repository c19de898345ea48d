"""The command lines, a script for each stage and app.

No stage depends on this file, so nothing that a stage writes may depend on it.
"""

import gc
import os
import sys
from types import TracebackType


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End without a traceback on Ctrl-C while modules are imported; `door.run` does the same later."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)


# `python -m src.x` is about to import its modules. They stay in memory, and the garbage collector would look through
# them again and again, which takes a fifth of a stage's start. strata/run/door.py switches it on again.
if sys.argv[0] == "-m":
    gc.disable()
    sys.excepthook = _told
