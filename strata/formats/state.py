"""The only place where a foreign `.pt` is opened. Only tensors, numbers, text and containers of them are read: a file
that could run code is refused."""

import re
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - to tell a file that was refused
from typing import Any

import torch

from strata.run.door import BadInput

SUFFIXES = (".pt", ".pth", ".bin")


def read(path: Path) -> dict[str, Any]:
    """Read what a file holds, by name, to the CPU. Raises BadInput for a file that could run code, or is no `.pt`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{path} is missing") from None
    except UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {name.group(1)}" if name else "holds more than tensors, numbers and text"
        raise BadInput(
            f"{path} {what}, and to open it could run code, so it was not opened; "
            "save its state_dict alone, or as safetensors"
        ) from None
    except Exception as error:  # a damaged file may fail in any way: a short archive, an index, a missing key
        raise BadInput(
            f"{path} is no file of tensors: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None

    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__}, not tensors by name")
    return {str(name): value for name, value in content.items()}
