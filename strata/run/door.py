"""Where bad input is turned away: one clear sentence, a non-zero exit, nothing lost."""

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
# What the system says of a path that it was given. Other errors are mistakes of ours, and keep their traceback.
OF_PATHS = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ETXTBSY, errno.EXDEV),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
}
LONGEST = 80  # signs of a word that a sentence quotes
WRONG, USAGE, INTERRUPTED, UNREAD = 1, 2, 130, 141  # exit codes; the last two as a shell counts signals


class BadInput(Exception):
    """What the user gave is wrong; the message is the sentence that says what would be right."""


class BadUsage(BadInput):
    """The words of the command line are wrong."""


def near(word: str, known: Iterable[str]) -> str:
    """``; did you mean train?``, with the one of ``known`` that is most like ``word``; nothing where none is."""
    by_sound = {name.lower(): name for name in known}
    likely = difflib.get_close_matches(word.lower(), by_sound, 1, 0.6)
    return f"; did you mean {by_sound[likely[0]]}?" if likely else ""


def one_of(word: str, known: Sequence[str], what: str) -> str:
    """``word``, which must be one of ``known``. Raises BadUsage; ``what`` names it: the format."""
    if word not in known:
        raise BadUsage(f"{what} is {word!r}, not {', '.join(known[:-1])} or {known[-1]}{near(word, known)}")
    return word


def whole_number(word: str, what: str, least: int = 0, most: int = 10**9) -> int:
    """A word as a whole number within bounds. Raises BadUsage; ``what`` names it: the port."""
    if not (word.isascii() and word.isdecimal() and len(word) <= len(str(most)) and least <= int(word) <= most):
        shown = word if len(word) <= LONGEST else f"{word[:LONGEST]}…"
        raise BadUsage(f"{what} is {shown!r}, not a whole number from {least} to {most}")
    return int(word)


def run(main: Callable[..., None], options: bool = False) -> None:
    """Call ``main`` with the command line's words, each of which is text, and end as a command should.

    ``options``: whether ``main`` itself reads words that begin with -.

    :class:`BadInput`, and what the system says of a path, are one sentence on stderr and exit code 1; 2 where the words
    themselves are wrong; 130 after Ctrl-C; 141 where nobody reads on. ``main``'s parameters are the usage line, its
    docstring is the help.
    """
    gc.freeze()  # what was imported, while src/__init__.py kept it from being looked through
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
        gc.freeze()  # or Python, as it ends, looks for cycles among what was imported meanwhile: up to a second


def usage(main: Callable[..., None]) -> str:
    """`python -m src.show LAYER LATENT [ROOT]`."""
    shapes = {True: "[{}]", False: "{}"}
    parts = [
        f"[{name.upper()} …]"
        if part.kind is part.VAR_POSITIONAL
        else shapes[part.default is not part.empty].format(name.upper())
        for name, part in inspect.signature(main).parameters.items()
    ]
    return " ".join([f"python -m {module()}", *parts])


def check_words(main: Callable[..., None], words: Sequence[str]) -> None:
    """Refuse words that ``main`` has no place for. Raises BadUsage."""
    parameters = inspect.signature(main).parameters
    for word in words:
        if word.startswith("-") and not VALUE.match(word):
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            if name in parameters:
                raise BadUsage(f"{word} is no option; {name.upper()} is given by its place: {usage(main)}")
            meant = near(word, ["--help", "--version"])
            raise BadUsage(f"{word} is no option{meant or f'; a path that begins so is written ./{word}'}")

    single = [part for part in parameters.values() if part.kind is not part.VAR_POSITIONAL]
    if missing := [part.name.upper() for part in single[len(words) :] if part.default is part.empty]:
        raise BadUsage(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: {usage(main)}")
    if len(words) > len(single) == len(parameters):
        raise BadUsage(f"{words[len(single)]!r} is one word too many: {usage(main)}")
    for word, part in zip(words, single, strict=False):
        if not word and part.default != "":
            raise BadUsage(f"{part.name.upper()} is empty: {usage(main)}")


def refused(error: OSError) -> str:
    """What the system says of a path, as a sentence."""
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if path is not None and path != ""]
    said = (error.strerror or errno.errorcode.get(error.errno or 0, "it cannot be used")).lower()
    return f"{' -> '.join(paths)}: {said}"


def version() -> str:
    """The commit of this checkout, and whether it was changed since."""
    try:
        described = ["git", "describe", "--tags", "--always", "--dirty"]
        root = Path(__file__).resolve().parents[2]
        return subprocess.run(described, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "of no known commit"


def module() -> str:
    """The module that runs, by the name that `python -m` knows it by."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]


def _end(sentence: str, code: int) -> None:
    """Say it on one line, whatever signs a name in it has, and exit."""
    line = "".join(
        sign if sign.isprintable() else " " if sign.isspace() else f"\\x{ord(sign):02x}" for sign in sentence
    )
    print(f"{module().rpartition('.')[2]}: {line}", file=sys.stderr)
    raise SystemExit(code) from None


def _unread() -> bool:
    """Whether it is stdout that nobody reads any longer (`| head`); what is still to be written is then dropped."""
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in stdout.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
