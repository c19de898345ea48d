"""Several processes of one stage, through torch.distributed. With one process none of this does anything.

The environment variable ``STRATA_LAUNCH`` holds the command that starts the processes (``torchrun --nproc-per-node 2``,
``srun torchrun …``). It is no param, because where a stage runs does not change what it writes. torchrun puts the
number of a process (its rank) into its environment; the first process has number 0.
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

PATIENCE = timedelta(days=1)  # the other processes wait while the first one tokenises, measures or waits for a lock
LONGEST = 4096  # bytes of a path, or of another text that the first process tells


def several(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a stage's ``main``: run it in the processes that STRATA_LAUNCH starts, which end together.

    Raises BadInput when STRATA_LAUNCH is no command that can be started.
    """

    @wraps(main)
    def run(*words: str) -> None:
        if (command := os.environ.get("STRATA_LAUNCH", "").strip()) and "RANK" not in os.environ:
            _become(command, words)
        try:
            main(*words)
            barrier()  # no process ends early: a machine's launcher would think that the whole stage has ended
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()

    return run


def _become(command: str, words: tuple[str, ...]) -> NoReturn:
    """Replace this process by the launcher ``command``, which runs the same module with the same ``words``."""
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
    """Return how many processes this stage has, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_world() -> int:
    """Return how many processes this stage has on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world() > 1 else 1


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: each process on a machine has a CUDA device of its own.

    Raises BadInput where there are fewer devices than processes.
    """
    if device.type != "cuda" or world() == 1:
        return device

    devices = torch.cuda.device_count() if device.index is None else 1
    if local_world() > devices:
        raise BadInput(
            f"STRATA_LAUNCH starts {local_world()} processes here, each of which needs a CUDA device of its own, and "
            f"machine.device ({device}) gives {devices}; start fewer, or set machine.device to cuda"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.index is None else device


def join(device: torch.device) -> None:
    """Connect to the other processes, by gloo for tensors on the CPU and by NCCL for tensors on CUDA.

    Each process calls this once, before it exchanges anything with the others.
    """
    if world() == 1:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _in_touch():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def barrier() -> None:
    """Wait until every process has reached this call."""
    if world() > 1:
        with _in_touch():
            distributed.all_reduce(torch.zeros(1))


def broadcast(*tensors: Tensor) -> None:
    """Overwrite each tensor by that of the first process."""
    if world() > 1:
        with _in_touch():
            for tensor in tensors:
                distributed.broadcast(tensor, 0)


def told(text: str) -> str:
    """Return, in every process, the ``text`` of the first one.

    It may have at most ``LONGEST`` bytes, which nothing checks: with more, the processes' tensors differ in length.
    """
    padded = torch.frombuffer(bytearray(text.encode().ljust(LONGEST, b"\0")), dtype=torch.uint8)
    broadcast(padded)
    return padded.numpy().tobytes().rstrip(b"\0").decode()


@contextmanager
def shared(block: AbstractContextManager[Path]) -> Iterator[Path]:
    """Enter ``block`` in the first process only, and yield its folder in all. Every machine must see that folder.

    At the end the processes do not wait for each other. The caller sees to it that none uses the folder any longer when
    the first one leaves, since ``block`` may remove it then.
    """
    # The other processes send nothing: told gives them the folder of the first.
    if rank():
        yield Path(told(""))
        return
    with block as folder:
        told(str(folder))
        yield folder


def share(parts: int, key: str) -> range:
    """Return the share of this process in ``parts``: a range of neighbours, of the same length in every process.

    ``key``: the param that sets the number of parts. Raises BadInput when they cannot be shared equally.
    """
    per_process, remainder = divmod(parts, world())
    if remainder:
        raise BadInput(
            f"params.yaml: {key} is {parts}, which the {world()} processes of STRATA_LAUNCH cannot share equally; "
            f"set it to a multiple of {world()}, or start fewer processes"
        )
    return range(rank() * per_process, (rank() + 1) * per_process)


def sum_in_order(parts: Iterable[Tensor]) -> Tensor:
    """Sum the float32 vectors (n,) of all processes, one by one in the order of :func:`share`; return the sum (n,).

    Every process must give the same number of vectors. One process alone adds to its first vector, in place, as the
    vectors come; several first collect them all.

    Floating-point sums depend on their order, so the sum of each process's own sum
    would depend on the number of processes. Here instead each process receives one slice of every vector and adds these
    slices up. Then the sums of the slices are gathered.
    """
    if world() == 1:
        return reduce(Tensor.add_, parts)

    own_vectors = list(parts)
    size = len(own_vectors[0])
    # (process that gets the slice, own vectors, entries of a slice), padded so that all slices are equally long
    slices = torch.stack([pad(vector, (0, -size % world())).view(world(), -1) for vector in own_vectors], dim=1)
    own_vectors.clear()  # frees as much memory as the slices take

    received = torch.empty_like(slices)  # (process that the vectors are of, its vectors, entries of the own slice)
    with _in_touch():
        distributed.all_to_all_single(received, slices)
        slice_sum = reduce(Tensor.add_, received.flatten(0, 1))
        total = slice_sum.new_empty(world() * len(slice_sum))
        distributed.all_gather_single(total, slice_sum)
    return total[:size]


@contextmanager
def _in_touch() -> Iterator[None]:
    """Turn the error of a process that has lost the others into BadInput."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(
            f"process {rank()} lost the others; what stopped is said by the first to end ({reason})"
        ) from error
