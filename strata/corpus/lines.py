"""Files that may be packed -> bytes or lines. Memory is bounded, however large a file becomes when it is unpacked."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa

from strata.run.door import BadInput

LONGEST = 2**25  # characters of a line, and of a document: some ten times the Bible
PACKED: dict[str, Callable[[Path], Any]] = {
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": lambda path: pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"),
}
CUT = (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException)  # raised by a packed file that is not whole
_MARKS = {  # byte-order mark at the beginning of a file -> its encoding; the longer marks first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def kind(path: Path) -> str:
    """Return the suffix that says what a file holds: `.csv` for data.csv.gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in PACKED else path.suffix.lower()


def unpacked(path: Path) -> BinaryIO:
    """Open a file, whose bytes are unpacked as they are read. Raises one of CUT, now or during the reading."""
    return cast(BinaryIO, PACKED.get(path.suffix.lower(), lambda plain: plain.open("rb"))(path))


def lines(path: Path) -> Generator[str, None, None]:
    """Yield the lines of a text in UTF-8 (or UTF-16 or 32, if its byte-order mark says so), each with its line end.

    Raises BadInput, with the number of the line, for a line of more than LONGEST characters, for the character NUL, for
    bytes that are no text, and for a file that is cut short.
    """
    number = 0  # lines that were read
    encoding = "UTF-8"
    try:
        with unpacked(path) as file:
            head = file.read(4)
        encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8-sig")

        with io.TextIOWrapper(cast(IO[bytes], unpacked(path)), encoding, newline="") as file:
            while line := file.readline(LONGEST + 1):
                number += 1
                _check(path, number, line)
                yield line
    except UnicodeDecodeError as error:
        # The decoder works on a block: the lines of it before the error were not yielded yet.
        number += 1 + error.object[: error.start].count(b"\n")
        name = encoding.removesuffix("-sig").upper()
        raise BadInput(f"{path} is not {name} text: {error.reason} in line {number}") from None
    except CUT as error:
        raise BadInput(f"{path} cannot be read after line {number}: {error}") from None


def _check(path: Path, number: int, line: str) -> None:
    """Refuse a line that is too long for a document, or holds NUL."""
    if len(line) > LONGEST:
        raise BadInput(f"{path}, line {number}, has more than {LONGEST:,} characters; cut it into documents")
    if "\0" in line:
        raise BadInput(f"{path}, line {number}, holds the character NUL: it is no text, or UTF-16 without its mark")
