"""Plain arrays of `.npy` and `.npz` files: no Python objects, and nothing in memory before its size is known.

A header says how large an array is; that has to be as many bytes as follow it.
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
HEAD = 2**14  # bytes in which its header has to end; numpy itself takes none of more than 10,000
BLOCK = 2**22  # bytes of rows that are in memory at once
PIECE = 2**20  # bytes that are unpacked at once

# What numpy, zipfile and its unpackers raise for a file that is none, is cut short, damaged or locked. A header is a
# literal of Python, which numpy parses.
BROKEN = (
    *(ValueError, TypeError, SyntaxError, TokenError),
    *(OSError, EOFError, BadZipFile, RuntimeError, zlib.error, lzma.LZMAError),
)


@dataclass(frozen=True)
class Header:
    """``start``: bytes of the header itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def size(self) -> int:
        """Bytes of the numbers."""
        return prod(self.shape) * self.dtype.itemsize


def header(head: bytes, whole: int) -> Header:
    """What the first bytes of a `.npy` of ``whole`` bytes say. Raises ValueError for Python objects, and for a size
    that is not that of what follows."""
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is for records, not for plain arrays")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    found = Header(shape, dtype, fortran, file.tell())
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save numbers, or texts as array.astype(str)")
    if any(length < 0 for length in shape) or found.size != whole - found.start:
        raise ValueError(f"its header says {dtype} {shape}, but {whole - found.start:,} bytes follow")
    return found


def of_bytes(content: bytes) -> NDArray[Any]:
    """The array that `np.save` wrote. Raises one of BROKEN."""
    found = header(content[:HEAD], len(content))
    flat = np.frombuffer(content, found.dtype, offset=found.start)
    return flat.reshape(found.shape, order="F" if found.fortran else "C")


def begins_npy(path: Path) -> bool:
    """Whether a file is a `.npy`, by its first bytes: a `.npz` may be called so, and the other way round."""
    with _readable(path), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def mapped(path: Path) -> NDArray[Any]:
    """The array of a `.npy`, memory-mapped. Raises BadInput."""
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
        return list(self._members)

    def header(self, name: str) -> Header:
        member = self._members[name]
        with _readable(self.path, name), self._file.open(member) as file:
            return header(file.read(HEAD), member.file_size)

    def read(self, name: str) -> NDArray[Any]:
        """A whole array, if the memory holds it."""
        found = self.header(name)
        _need(self.path, name, found.size)
        parts = list(self._blocks(name, found, found.size))
        flat = parts[0] if parts else np.empty(0, found.dtype)
        return flat.reshape(found.shape, order="F" if found.fortran else "C")

    def rows(self, name: str) -> Generator[NDArray[Any], None, None]:
        """The rows of a matrix, one by one; a block of them is in memory, unless it is stored column by column."""
        found = self.header(name)
        if found.fortran or not found.size:
            yield from self.read(name)
            return
        row = found.size // found.shape[0]
        _need(self.path, name, row)
        with closing(self._blocks(name, found, max(BLOCK // row, 1) * row)) as blocks:
            for flat in blocks:
                yield from flat.reshape(-1, *found.shape[1:])

    def _blocks(self, name: str, found: Header, size: int) -> Generator[NDArray[Any], None, None]:
        """The numbers as flat arrays of ``size`` bytes; the last one may be shorter. zipfile compares the check sum."""
        with _readable(self.path, name), self._file.open(self._members[name]) as file:
            file.read(found.start)
            for begin in range(0, found.size, max(size, 1)):
                yield _filled(file, min(size, found.size - begin), found.dtype)
            if file.read(1):
                raise ValueError("it is longer than its header says")


@contextmanager
def archive(path: Path) -> Iterator[Archive]:
    """Open a `.npz`; raises BadInput for what is none."""
    with _readable(path):
        file = ZipFile(path)
    with file:
        with _readable(path):
            found = Archive(path, file)
        yield found


def read(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a `.npz` by name, if the memory holds them. Raises BadInput."""
    with archive(path) as file:
        _need(path, "its arrays", sum(file.header(name).size for name in file.names))
        return {name: file.read(name) for name in file.names}


def _filled(file: IO[bytes], size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The next ``size`` bytes as numbers, in an array of its own, which may be written to."""
    flat = np.empty(size, np.uint8)
    done = 0
    while done < size:
        got = file.readinto(flat.data[done : done + PIECE])  # pyright: ignore[reportAttributeAccessIssue]
        if not got:
            raise EOFError(f"it ends {size - done:,} bytes too early")
        done += got
    return flat.view(dtype)


def _need(path: Path, what: str, size: int) -> None:
    free = psutil.virtual_memory().available
    if size > free:
        raise BadInput(f"{path}: {what} needs {size / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB are free")


@contextmanager
def _readable(path: Path, name: str | None = None) -> Iterator[None]:
    """Turn what a broken file raises into a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise BadInput(f"{path} is missing") from None
    except BROKEN as error:
        what = f"{path}: the array {name!r}" if name else f"{path}"
        raise BadInput(f"{what} is no file of plain arrays: {' '.join(str(error).split())}") from None
