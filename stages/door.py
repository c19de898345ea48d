"""Where bad input is turned away: one clear sentence, a non-zero exit, nothing lost."""

import gc
import inspect
import sys
from collections.abc import Callable


class BadInput(Exception):
    """What the user gave is wrong; the message is the sentence that says what would be right."""


def run(main: Callable[..., None]) -> None:
    """Call ``main`` with the command line's words; end a :class:`BadInput` as one sentence on stderr.

    ``main``'s own parameters are the usage line; its docstring is the help. Every word is text.
    """
    gc.freeze()  # what was imported, while src/__init__.py kept it from being looked through
    gc.enable()
    words = sys.argv[1:]
    try:
        inspect.signature(main).bind(*words)
    except TypeError:
        usage = " ".join(name.upper() for name in inspect.signature(main).parameters)
        print(f"usage: python -m {module()} {usage}\n\n{inspect.getdoc(main) or ''}", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        main(*words)
    except BadInput as refusal:
        print(f"{module().rpartition('.')[2]}: {refusal}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        gc.freeze()  # or Python, as it ends, looks for cycles among what was imported meanwhile: up to a second


def module() -> str:
    """The module that runs, by the name that `python -m` knows it by."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]
