"""The door, where bad input is refused in one clear sentence, without a traceback.

A command line goes through :func:`run`, which turns the refusal into an exit code. A Python call checks its arguments
by the functions at the end, such as :func:`choice` and :func:`whole`, which name the argument.
"""

import difflib
import errno
import gc
import inspect
import math
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

VALUE = re.compile(r"-?$|-[\d.]")  # words that begin with - and are no options: -1, -.5, and - itself
# Errors of the system that are about a path of the user's. Other errors are mistakes of ours, and keep their traceback.
OF_PATHS = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ETXTBSY, errno.EXDEV),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
}
LONGEST = 80  # characters of a word that a sentence quotes
WRONG, USAGE, INTERRUPTED, UNREAD = 1, 2, 130, 141  # exit codes; the last two as a shell counts signals


class BadInput(Exception):
    """What the user gave is wrong; the message is the sentence that says what would be right."""


class BadUsage(BadInput):
    """The words of the command line are wrong."""


def near(word: str, known: Iterable[str]) -> str:
    """Write ``; did you mean train?``, with the word of ``known`` that is most like ``word``; "" where none is."""
    by_lower_case = {name.lower(): name for name in known}
    similar = difflib.get_close_matches(word.lower(), by_lower_case, 1, 0.6)
    return f"; did you mean {by_lower_case[similar[0]]}?" if similar else ""


def one_of(word: str, known: Sequence[str], what: str) -> str:
    """Return ``word`` if it is one of ``known``, else raise BadUsage. ``what`` names it there, as in "the format"."""
    if word not in known:
        raise BadUsage(f"{what} is {word!r}, not {', '.join(known[:-1])} or {known[-1]}{near(word, known)}")
    return word


def whole_number(word: str, what: str, least: int = 0, most: int = 10**9) -> int:
    """Read a word as a whole number from ``least`` to ``most``, else raise BadUsage. ``what`` names it: "the port"."""
    if not (word.isascii() and word.isdecimal() and len(word) <= len(str(most)) and least <= int(word) <= most):
        shown = word if len(word) <= LONGEST else f"{word[:LONGEST]}…"
        raise BadUsage(f"{what} is {shown!r}, not a whole number from {least} to {most}")
    return int(word)


def run(main: Callable[..., None], options: bool = False) -> None:
    """Call ``main`` with the words of the command line, as texts, and end as a command should.

    The usage line is made of the parameters of ``main``, the help is its docstring. :class:`BadInput`, and an error of
    the system about a path, become one sentence on stderr and exit code 1. The exit code is 2 where the words
    themselves are wrong, 130 after Ctrl-C, and 141 where the reader of the output has gone away.
    ``options``: whether ``main`` itself reads words that begin with -.
    """
    # src/__init__.py switched the garbage collector off while modules were imported. It goes on again here. Freezing
    # exempts the objects that the imports made from its searches.
    gc.freeze()
    gc.enable()

    words = sys.argv[1:]
    try:
        if {"-h", "--help"}.intersection(words):
            print(f"usage: {usage(main)}\n\n{inspect.getdoc(main) or ''}")
        elif "--version" in words:
            print(f"strata {version()}")
        else:
            if not options:
                check_words(main, words)
            main(*words)
        sys.stdout.flush()
    except BadInput as refusal:
        _end(str(refusal), USAGE if isinstance(refusal, BadUsage) else WRONG)
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        if not _unread():
            raise
        raise SystemExit(UNREAD) from None
    except OSError as error:
        if error.filename is None or error.errno not in OF_PATHS:
            raise
        _end(refused(error), WRONG)
    finally:
        gc.freeze()  # else Python searches for cycles among later imports when it ends, which takes up to a second


def usage(main: Callable[..., None]) -> str:
    """Write the usage line of ``main``: `python -m src.show LAYER LATENT [ROOT]`."""
    words = []
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.append(f"[{name.upper()} …]")
        elif parameter.default is not parameter.empty:
            words.append(f"[{name.upper()}]")
        else:
            words.append(name.upper())
    return " ".join([f"python -m {module()}", *words])


def check_words(main: Callable[..., None], words: Sequence[str]) -> None:
    """Refuse words that do not fit the parameters of ``main``: options, too few, too many, empty. Raises BadUsage."""
    parameters = inspect.signature(main).parameters

    for word in words:
        if word.startswith("-") and not VALUE.match(word):
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            if name in parameters:
                raise BadUsage(f"{word} is no option; {name.upper()} is given by its place: {usage(main)}")
            suggestion = near(word, ["--help", "--version"])
            raise BadUsage(f"{word} is no option{suggestion or f'; a path that begins so is written ./{word}'}")

    single = [part for part in parameters.values() if part.kind is not part.VAR_POSITIONAL]
    if missing := [part.name.upper() for part in single[len(words) :] if part.default is part.empty]:
        raise BadUsage(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: {usage(main)}")
    # With a parameter `*words`, which is not in ``single``, no number of words is too large.
    if len(words) > len(single) == len(parameters):
        raise BadUsage(f"{words[len(single)]!r} is one word too many: {usage(main)}")
    for word, part in zip(words, single, strict=False):
        if not word and part.default != "":
            raise BadUsage(f"{part.name.upper()} is empty: {usage(main)}")


def refused(error: OSError) -> str:
    """Write an error of the system about a path as a sentence: the path, or both of a move, and the reason."""
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if path is not None and path != ""]
    reason = (error.strerror or errno.errorcode.get(error.errno or 0, "it cannot be used")).lower()
    return f"{' -> '.join(paths)}: {reason}"


def version() -> str:
    """Return the commit of this checkout, and whether its files have changed since."""
    try:
        command = ["git", "describe", "--tags", "--always", "--dirty"]
        root = Path(__file__).resolve().parents[2]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "of no known commit"


def module() -> str:
    """Return the name of the module that runs, as `python -m` takes it."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]


def _end(sentence: str, code: int) -> None:
    """Write ``sentence`` on one line of stderr and exit with ``code``.

    A name in the sentence may hold any character: white space becomes a space, and what cannot be printed is escaped.
    """
    line = "".join(
        sign if sign.isprintable() else " " if sign.isspace() else f"\\x{ord(sign):02x}" for sign in sentence
    )
    print(f"{module().rpartition('.')[2]}: {line}", file=sys.stderr)
    raise SystemExit(code) from None


def _unread() -> bool:
    """Say whether the reader of stdout has gone away (`| head`); if so, drop what is still to be written."""
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in stdout.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


# --- the arguments of a Python call -------------------------------------------------------------------------------


def choice(name: str, value: object, words: Collection[str], else_: str = "") -> None:
    """Refuse a ``value`` that is none of ``words``. ``else_``: what else is allowed, for the message."""
    if not (isinstance(value, str) and value in words):
        raise BadInput(
            f"{name} is {value!r}; it must be {' or '.join(map(repr, words))}{else_}{near(str(value), words)}"
        )


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int from ``low`` to ``high``, or refuse it. True and 1.0 do not count as whole numbers."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise BadInput(f"{name} is {value!r}; it must be a whole number {bounds}")
    return number


def finite(name: str, value: object) -> None:
    """Refuse a ``value`` that is no finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise BadInput(f"{name} is {value!r}; it must be a finite number")


def of_kind(name: str, value: T, kind: type | UnionType, remedy: str) -> T:
    """Return ``value`` if it is of type ``kind``, else refuse it. ``remedy`` says what would be right."""
    if not isinstance(value, kind):
        raise BadInput(f"{name} is {a_thing(value)}; {remedy}")
    return value


def a_thing(value: object) -> str:
    """Describe ``value`` in a few words: ``None``, ``the text 'abc…'``, ``of type Series``."""
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value[:20] + '…' * (len(value) > 20)!r}"
    return f"of type {type(value).__name__}"


def device(value: object) -> "torch.device":
    """Return the device that ``value`` is, or names: "cpu", "cuda".

    Raises BadInput for what torch cannot read as a device, and for cuda where torch finds no GPU. The number of a GPU,
    and devices of other kinds, are not checked.
    """
    import torch  # only here: no command line waits for it

    try:
        checked = torch.device(value)  # pyright: ignore[reportArgumentType, reportCallIssue]  # a name, or a device
    except (RuntimeError, TypeError):
        raise BadInput(f"device is {value!r}; it must be cpu or cuda") from None
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"device is {value!r}, but torch finds no GPU here; it must be cpu")
    return checked


def one_a_row(name: str, value: Any, rows: int) -> list[str]:
    """Return ``value`` (a list, an array or a column of a table) as a list of ``rows`` texts, or refuse it.

    Numbers are written out, and a missing value (None, NaN) becomes "".
    """
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise BadInput(f"{name} is {a_thing(value)}; it must be a list, one a vector")
    texts = ["" if is_missing(item) else str(item) for item in value]
    if len(texts) != rows:
        raise BadInput(f"{len(texts)} {name} are given for {rows} vectors; there must be one each")
    return texts


def is_missing(value: object) -> bool:
    """Say whether ``value`` stands for nothing: None, NaN, pandas' NA or NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real) and math.isnan(value)
