"""Where the arithmetic runs."""

import ctypes
import os

import numba
import psutil
import torch
from numba.core.config import NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from strata.device import launch
from strata.run.door import BadInput
from strata.run.params import Machine

CPU = torch.device("cpu")


def start(machine: Machine) -> torch.device:
    """Pin the threads, choose the device and meet the stage's other processes, if it has several.

    ``auto`` is CUDA where there is one, else the CPU; ``cuda`` the first device, or one for each process.
    """
    torch.set_num_threads(machine.threads)
    numba.set_num_threads(min(machine.threads, NUMBA_NUM_THREADS))  # it has at the most as many as there are cores
    name = machine.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"params.yaml: machine.device is {name!r}; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput("params.yaml: machine.device is cuda, but this machine has no CUDA device")
    device = launch.local_device(device)
    launch.join(device)
    if device.type == "cuda":
        _repeatable()
    return device


def need_memory(needed: float, device: torch.device, what: str, remedy: str) -> None:
    """Refuse to start what ``device`` has no memory for (``needed`` in bytes). Raises BadInput."""
    if needed > (free := free_memory(device)):
        raise BadInput(f"{what} needs {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free; {remedy}")


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on ``device`` now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def put(x: Tensor, device: torch.device) -> Tensor:
    """``x``, which is on the CPU, on ``device``; from pinned memory, so that the CPU need not wait for a copy."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


def _repeatable() -> None:
    """Have CUDA sum in one order. An operation that cannot says so in a warning and goes on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # SAE.encode bounds the rounding


def keep_memory() -> None:
    """Have glibc keep large freed blocks. It gives each back by default, and faulting a new one in costs a fifth of a
    training step. For what takes blocks of the same sizes again and again: where they grow, as in generating text, the
    holes between them would fill the memory. Other C libraries are left alone."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
