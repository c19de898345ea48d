"""The device and the threads on which a stage computes, and their memory."""

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
    """Pin the threads, choose the device, and connect to the stage's other processes if it has several.

    ``auto`` means CUDA where there is a CUDA device, else the CPU. ``cuda`` means the first device, or one for each
    process. Raises BadInput for a device that this machine does not have.
    """
    round_alike()
    torch.set_num_threads(machine.threads)
    numba.set_num_threads(min(machine.threads, NUMBA_NUM_THREADS))  # Numba allows no more threads than cores

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


def round_alike() -> None:
    """Make MKL round a product alike wherever its matrices lie in memory, on a processor with AVX2 and no AVX-512.

    There MKL takes another order of summation for a matrix at another alignment, and the alignment differs from one
    process to the next. This costs no measurable time. MKL reads the setting at the first product of a process:
    ``start`` sets it, and a stage that multiplies without ``start`` calls this.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it, else float32.

    A CPU without such instructions (AVX-512 BF16, AMX) takes eight to nine times as long in bfloat16 as in float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def need_memory(needed: float, device: torch.device, what: str, remedy: str) -> None:
    """Refuse work that needs more memory than ``device`` has (``needed`` in bytes), by a BadInput.

    ``what`` names the work, ``remedy`` says what the user can do.
    """
    if needed > (free := free_memory(device)):
        raise BadInput(f"{what} needs {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free; {remedy}")


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on ``device`` now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def put(x: Tensor, device: torch.device) -> Tensor:
    """Move ``x`` from the CPU to ``device``, through pinned memory, so that the CPU need not wait for the copy."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


def _repeatable() -> None:
    """Make CUDA sum in a fixed order. An operation that cannot do that prints a warning and goes on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # SAE.encode bounds the rounding


def keep_memory() -> None:
    """Make glibc keep large freed blocks of memory for reuse.

    By default it returns each block to the system, and getting a new one costs a fifth of a training step. Call this
    only for work that takes blocks of the same sizes again and again. Where blocks grow, as in generating text, the
    holes between them would fill the memory. Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
