"""Where the arithmetic runs."""

import ctypes

import torch
from pydantic import Field

from stages import launch
from stages.door import BadInput
from stages.params import Section


class Machine(Section):
    """``device``: auto, cpu, cuda, cuda:1 …; ``threads``: pinned, because floating-point sums depend on it.

    ``save_every``: seconds between the states that an interrupted training goes on from.
    """

    device: str
    threads: int = Field(gt=0)
    save_every: float = Field(ge=0)


def start(machine: Machine) -> torch.device:
    """Pin the threads, choose the device and meet the stage's other processes, if it has several.

    ``auto`` is CUDA where there is one, else the CPU; ``cuda`` the first device, or one for each process.
    """
    torch.set_num_threads(machine.threads)
    _keep_memory()
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
    return device


def _keep_memory() -> None:
    """Have glibc keep large freed blocks. It gives each back by default, and faulting a new one in costs a fifth of a
    training step. Other C libraries are left alone."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
