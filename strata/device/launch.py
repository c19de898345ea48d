"""Several processes of one stage, through torch.distributed; with one process all of this does nothing.

The environment variable ``STRATA_LAUNCH`` (``torchrun --nproc-per-node 2``, ``srun torchrun …``) says what starts them.
It is no param, because where a stage runs does not change what it writes. A process knows its number from what torchrun
puts into its environment; the first has number 0.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import reduce, wraps
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad

from strata.run.door import BadInput, module

PATIENCE = timedelta(days=1)  # the others wait while the first alone tokenises, measures or waits for a lock
LONGEST = 4096  # bytes of a path


def several(main: Callable[..., None]) -> Callable[..., None]:
    """Let a stage's ``main`` run in the processes that STRATA_LAUNCH starts; they end together.

    Raises BadInput when STRATA_LAUNCH names nothing that can be started.
    """

    @wraps(main)
    def run(*words: str) -> None:
        if (command := os.environ.get("STRATA_LAUNCH", "").strip()) and "RANK" not in os.environ:
            _become(command, words)
        try:
            main(*words)
            barrier()  # so that no machine's launcher takes the end of its own processes for the stage's
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()

    return run


def _become(command: str, words: tuple[str, ...]) -> NoReturn:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or torchrun does, with a warning; machine.threads is what counts
    try:
        launcher = shlex.split(command)
        os.execvp(launcher[0], [*launcher, "-m", module(), *words])
    except (ValueError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadInput(
            f"STRATA_LAUNCH is {command!r}, which cannot be started ({why}); it is a command such as "
            "`torchrun --nproc-per-node 2`"
        ) from None


def world() -> int:
    """How many processes this stage has, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_world() -> int:
    """How many processes this stage has on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world() > 1 else 1


def local_device(device: torch.device) -> torch.device:
    """What ``device`` is for this process: each on a machine has a CUDA device of its own."""
    if device.type != "cuda" or world() == 1:
        return device
    there = torch.cuda.device_count() if device.index is None else 1
    if local_world() > there:
        raise BadInput(
            f"STRATA_LAUNCH starts {local_world()} processes here, each of which needs a CUDA device of its own, and "
            f"machine.device ({device}) gives {there}; start fewer, or set machine.device to cuda"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.index is None else device


def join(device: torch.device) -> None:
    """Meet the other processes: over gloo for tensors on the CPU, NCCL for those on CUDA."""
    if world() == 1:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _in_touch():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        with _in_touch():
            distributed.all_reduce(torch.zeros(1))


def broadcast(*tensors: Tensor) -> None:
    """Overwrite each tensor by the first process's."""
    if world() > 1:
        with _in_touch():
            for tensor in tensors:
                distributed.broadcast(tensor, 0)


def told(text: str) -> str:
    """What the first process says, in every one; at most ``LONGEST`` bytes."""
    said = torch.frombuffer(bytearray(text.encode().ljust(LONGEST, b"\0")), dtype=torch.uint8)
    broadcast(said)
    return said.numpy().tobytes().rstrip(b"\0").decode()


@contextmanager
def shared(block: AbstractContextManager[Path]) -> Iterator[Path]:
    """Enter ``block`` in the first process alone. All get its folder, which must lie where every machine sees it."""
    if rank():
        yield Path(told(""))
        return
    with block as folder:
        told(str(folder))
        yield folder


def share(parts: int, key: str) -> range:
    """Which of ``parts`` this process has: neighbours, equally many in every process. ``key``: the param that says so.

    Raises BadInput when they cannot be shared equally.
    """
    each, rest = divmod(parts, world())
    if rest:
        raise BadInput(
            f"params.yaml: {key} is {parts}, which the {world()} processes of STRATA_LAUNCH cannot share equally; "
            f"set it to a multiple of {world()}, or start fewer processes"
        )
    return range(rank() * each, (rank() + 1) * each)


def sum_in_order(parts: Iterable[Tensor]) -> Tensor:
    """(n,): the sum of the vectors of all processes, each (n,) of float32, added one by one in the order of
    :func:`share`; the first is overwritten.

    Floating-point sums depend on their order, so sums of sums would depend on the number of processes. Here each
    process gets one slice of every vector, adds these up, and the slices are gathered.
    """
    if world() == 1:
        return reduce(Tensor.add_, parts)
    own = list(parts)
    size = len(own[0])
    cut = torch.stack([pad(part, (0, -size % world())).view(world(), -1) for part in own], dim=1)
    own.clear()  # as large as all that follows
    received = torch.empty_like(cut)  # (process, its vectors, slice)
    with _in_touch():
        distributed.all_to_all_single(received, cut)
        mine = reduce(Tensor.add_, received.flatten(0, 1))
        whole = mine.new_empty(world() * len(mine))
        distributed.all_gather_single(whole, mine)
    return whole[:size]


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(
            f"process {rank()} lost the others; what stopped is said by the first to end ({reason})"
        ) from error
