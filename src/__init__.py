"""A script a stage. No stage depends on this file: nothing that a stage writes may depend on it."""

import gc
import sys

# `python -m src.x` is about to import. What it imports stays, and looking through it for cycles again and again takes a
# fifth of a stage's start; stages/door.py ends that.
if sys.argv[0] == "-m":
    gc.disable()
