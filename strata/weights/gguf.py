"""GGUF file -> a folder that transformers loads in seconds: bfloat16 safetensors and a fast tokenizer."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from strata.run.door import BadInput
from strata.run.files import need_disk
from strata.run.progress import Progress

# Number of a type in the GGUF format, version 2 and 3 -> format by which struct reads a value of it.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)  # of the format; version 1 counts in 32 bits
MOST = 2**24  # bytes that one entry of a header may take
QUANT_SIZES = {kind.value: sizes for kind, sizes in GGML_QUANT_SIZES.items()}  # elements and bytes of a block


def unpack(path: Path, folder: Path) -> None:
    """Dequantise the model in ``path``; save it and its tokenizer into the existing ``folder``.

    Raises BadInput for a file that is no GGUF or is cut short, and for an architecture that transformers cannot read.
    """
    need_disk(folder, check(path) * torch.bfloat16.itemsize, f"unpacking {path.name}")

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    with _read_once(), Progress("unpack the model", "steps", 3) as progress:
        try:
            config = AutoConfig.from_pretrained(**where)
            progress.update()
            # If the tokenizer's type is said, transformers need not read the config from the file once more.
            known = config.model_type in TOKENIZER_MAPPING_NAMES
            tokenizer = AutoTokenizer.from_pretrained(
                **where, **({"tokenizer_type": config.model_type} if known else {})
            )
            progress.update()
            # `dequantize` also keeps the entry on quantisation out of the config, where it would spoil later loads.
            model = AutoModelForCausalLM.from_pretrained(
                **where, config=config, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
            progress.update()
        except (ValueError, KeyError, OSError, NotImplementedError) as error:
            raise BadInput(
                f"transformers cannot read the model in {path.name}: {' '.join(str(error).split())}"
            ) from None

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors leaves 0600, which a shared DVC cache could not read


class _Reader(gguf.GGUFReader):
    """gguf's reader on a plain array.

    The reader sets its ``data`` to a memmap, and slices it once for each token of the vocabulary. A slice of a memmap
    costs three times as much as one of a plain array, which the setter below makes of it.
    """

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, value: np.ndarray) -> None:
        self._data = value.view(np.ndarray)


@contextmanager
def _read_once() -> Iterator[None]:
    """Inside the block, let transformers read a file's header once: not for the config and again for the weights."""
    with patch.object(gguf, "GGUFReader", cache(_Reader)):
        yield


def check(path: Path) -> int:
    """Refuse a file that is no GGUF or is cut short; return how many parameters it holds."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadInput(f"{path.name} is not a GGUF file: it does not begin with the letters GGUF")
        try:
            tensors, data = _tensors(file)
            end = max((data + offset + length for _, length, offset in tensors), default=0)
        except struct.error:
            raise BadInput(f"{path.name} is truncated: its {size} bytes end inside the header") from None
        except KeyError as error:
            raise BadInput(f"{path.name} is damaged, or of a newer GGUF format: it holds a type {error}") from None
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path.name} cannot be read: {error}") from None
    if size < end:
        raise BadInput(f"{path.name} is truncated: it has {size} bytes, and its tensors end at {end}")
    return sum(elements for elements, _, _ in tensors)


def _tensors(file: BinaryIO) -> tuple[list[tuple[int, int, int]], int]:
    """Read (elements, bytes, offset) of every tensor, and the byte of the file from which the offsets count.

    ``file`` is read from behind the letters GGUF. The gguf package's own reader makes an object of each of a million
    tokens, which takes ten seconds.
    """
    version, tensors, pairs = _read(file, "<IQQ")
    if version not in VERSIONS:
        raise ValueError(f"it is of GGUF version {version}, or its numbers are big-endian; versions 2 and 3 are read")

    # Key-value pairs, of which only the alignment is needed.
    alignment = 32
    for _ in range(pairs):
        key = _string(file)
        value = _value(file, _read(file, "<I")[0])
        if key == b"general.alignment" and isinstance(value, int):
            alignment = value
    if alignment < 1:
        raise ValueError(f"its alignment is {alignment}")

    # Of each tensor: its name, its dimensions, its type, and its offset.
    infos = []
    for _ in range(tensors):
        _string(file)
        elements = prod(_read(file, f"<{_read(file, '<I')[0]}Q"))
        kind, offset = _read(file, "<IQ")
        block_elements, block_bytes = QUANT_SIZES[kind]
        infos.append((elements, elements // block_elements * block_bytes, offset))
    return infos, -(-file.tell() // alignment) * alignment


def _value(file: BinaryIO, kind: int) -> Any:
    """Read one value of the header, of the type ``kind``; an array is skipped and gives None."""
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _read(file, f"<{SCALARS[kind]}")[0]

    inner, count = _read(file, "<IQ")
    if inner in SCALARS:
        if count > 2**32:  # more than any vocabulary, and than a file can be wound forward
            raise ValueError(f"an array of its header has {count} numbers")
        file.seek(count * struct.calcsize(f"<{SCALARS[inner]}"), os.SEEK_CUR)
    else:
        for _ in range(count):
            _value(file, inner)
    return None


def _string(file: BinaryIO) -> bytes:
    """Read a string: its length, then its bytes."""
    return _read(file, f"<{_read(file, '<Q')[0]}s")[0]


def _read(file: BinaryIO, form: str) -> tuple[Any, ...]:
    """Read values by a format of struct. Raises struct.error at the end of the file, and for more than MOST bytes."""
    size = struct.calcsize(form)
    if size > MOST:  # only a damaged file asks for so much, and could ask for all memory
        raise struct.error
    return struct.unpack(form, file.read(size))
