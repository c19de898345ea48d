"""The door, where bad input is refused: one clear sentence, a non-zero exit code, and nothing is lost."""

import difflib
import errno
import gc
import inspect
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

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
    # src/__init__.py switched the collector off during the imports. Freezing exempts their objects from its searches.
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
