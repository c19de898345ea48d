"""Ask git, and read what it says of files that anybody may have committed."""

import subprocess

from strata.run.door import BadInput


def git(*words: str) -> str | None:
    """Return what a git command prints; None where it fails. Bytes that are not UTF-8 become surrogates."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, encoding="utf-8", errors="surrogateescape")
    except OSError:
        raise BadInput("git could not be started, which knows experiments and commits; is it installed?") from None
    return done.stdout if done.returncode == 0 else None


def utf8(text: str, where: str) -> str:
    """Return ``text``. Raises BadInput where bytes that are not UTF-8 stand in it as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise BadInput(f"{where} holds text that is not UTF-8, on line {line}; save it as UTF-8") from None
    return text
