"""Plain arrays of `.npy` and `.npz` files: no Python objects, and nothing is read into memory before its size is known.

A header says how large an array is. A file is refused unless exactly that many bytes follow the header.
"""

import io
import lzma
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
import psutil
from numpy.typing import NDArray

from strata.run.door import BadInput

MAGIC = b"\x93NUMPY"  # what a `.npy` begins with
HEAD = 2**14  # bytes within which its header must end; numpy itself accepts no header of more than 10,000
BLOCK = 2**22  # bytes of rows that are in memory at once
PIECE = 2**20  # bytes that are unpacked at once

# Errors that numpy, zipfile and its unpackers raise for a file that is no array, is cut short, damaged or locked. A
# header is a Python literal, which numpy parses.
BROKEN = (
    *(ValueError, TypeError, SyntaxError, TokenError),
    *(OSError, EOFError, BadZipFile, RuntimeError, zlib.error, lzma.LZMAError),
)


@dataclass(frozen=True)
class Header:
    """What the header of a `.npy` says. ``start``: the byte where the numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def size(self) -> int:
        """The bytes of the numbers."""
        return prod(self.shape) * self.dtype.itemsize


def header(head: bytes, whole: int) -> Header:
    """Read the header of a `.npy` from its first bytes ``head``. ``whole``: bytes of the whole file.

    Raises ValueError for Python objects, and where the header does not fit the number of bytes that follow it.
    """
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is for records, not for plain arrays")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)

    parsed = Header(shape, dtype, fortran, file.tell())
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save numbers, or texts as array.astype(str)")
    if any(length < 0 for length in shape) or parsed.size != whole - parsed.start:
        raise ValueError(f"its header says {dtype} {shape}, but {whole - parsed.start:,} bytes follow")
    return parsed


def of_bytes(content: bytes) -> NDArray[Any]:
    """Read the array that `np.save` wrote as ``content``. Raises one of BROKEN."""
    head = header(content[:HEAD], len(content))
    flat = np.frombuffer(content, head.dtype, offset=head.start)
    return flat.reshape(head.shape, order="F" if head.fortran else "C")


def begins_npy(path: Path) -> bool:
    """Say whether a file is a `.npy`, by its first bytes: its name may say `.npz`, and the other way round."""
    with _readable(path), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def mapped(path: Path) -> NDArray[Any]:
    """Map the array of a `.npy` into memory. Raises BadInput for a file that is none."""
    with _readable(path), path.open("rb") as file:
        header(file.read(HEAD), path.stat().st_size)
        return np.load(path, mmap_mode="r")


class Archive:
    """The arrays of an open `.npz` by name."""

    def __init__(self, path: Path, file: ZipFile) -> None:
        self.path, self._file = path, file
        self._members: dict[str, ZipInfo] = {}
        for member in file.infolist():
            name = member.filename.removesuffix(".npy")
            if name in self._members:
                raise ValueError(f"it holds two arrays called {name!r}")
            self._members[name] = member

    @property
    def names(self) -> list[str]:
        """The names of the arrays, in the file's order."""
        return list(self._members)

    def header(self, name: str) -> Header:
        """Read the header of an array."""
        member = self._members[name]
        with _readable(self.path, name), self._file.open(member) as file:
            return header(file.read(HEAD), member.file_size)

    def read(self, name: str) -> NDArray[Any]:
        """Read a whole array. Raises BadInput where the memory does not hold it."""
        head = self.header(name)
        _need(self.path, name, head.size)
        blocks = list(self._blocks(name, head, head.size))
        flat = blocks[0] if blocks else np.empty(0, head.dtype)
        return flat.reshape(head.shape, order="F" if head.fortran else "C")

    def rows(self, name: str) -> Generator[NDArray[Any], None, None]:
        """Yield the rows of a matrix. A block of rows is in memory, or the whole if it is stored column by column."""
        head = self.header(name)
        if head.fortran or not head.size:
            yield from self.read(name)
            return

        row_size = head.size // head.shape[0]  # bytes
        _need(self.path, name, row_size)
        with closing(self._blocks(name, head, max(BLOCK // row_size, 1) * row_size)) as blocks:
            for flat in blocks:
                yield from flat.reshape(-1, *head.shape[1:])

    def _blocks(self, name: str, head: Header, size: int) -> Generator[NDArray[Any], None, None]:
        """Yield the numbers as flat arrays of ``size`` bytes, of which the last one may be shorter.

        They are read to the end, where zipfile compares the checksum.
        """
        with _readable(self.path, name), self._file.open(self._members[name]) as file:
            file.read(head.start)
            for start in range(0, head.size, max(size, 1)):
                yield _filled(file, min(size, head.size - start), head.dtype)
            if file.read(1):
                raise ValueError("it is longer than its header says")


@contextmanager
def archive(path: Path) -> Iterator[Archive]:
    """Open a `.npz`. Raises BadInput for a file that is none."""
    with _readable(path):
        file = ZipFile(path)
    with file:
        with _readable(path):
            opened = Archive(path, file)
        yield opened  # outside of `_readable`, which must not see the caller's errors


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a `.npz` by name. Raises BadInput where the memory does not hold them."""
    with archive(path) as file:
        _need(path, "its arrays", sum(file.header(name).size for name in file.names))
        return {name: file.read(name) for name in file.names}


def _filled(file: IO[bytes], size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read the next ``size`` bytes as numbers, into a new array, which may be written to."""
    flat = np.empty(size, np.uint8)
    done = 0
    while done < size:
        count = file.readinto(flat.data[done : done + PIECE])  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise EOFError(f"it ends {size - done:,} bytes too early")
        done += count
    return flat.view(dtype)


def _need(path: Path, what: str, size: int) -> None:
    """Refuse to read ``size`` bytes if the memory does not hold them."""
    free = psutil.virtual_memory().available
    if size > free:
        raise BadInput(f"{path}: {what} needs {size / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB are free")


@contextmanager
def _readable(path: Path, name: str | None = None) -> Iterator[None]:
    """Turn the errors that a broken file raises into BadInput, in one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise BadInput(f"{path} is missing") from None
    except BROKEN as error:
        what = f"{path}: the array {name!r}" if name else f"{path}"
        raise BadInput(f"{what} is no file of plain arrays: {' '.join(str(error).split())}") from None
