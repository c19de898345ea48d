"""One streamed pass over a layer's activations writes its sparse codes by latent, a shard at a time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from stages.extract.shards import Activations
from stages.files import sha256, write_tensors
from stages.machine import CPU, put
from stages.sae.sae import SAE

Turned = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]


@njit(cache=True)
def turn(row_starts, latents, values, width) -> Turned:  # pyright: ignore[reportReturnType]
    """CSR by row -> by latent: starts (width + 1,), rows and values (entries,). A counting sort, so rows ascend."""
    starts = np.zeros(width + 1, np.int64)
    for latent in latents:
        starts[latent + 1] += 1
    starts = starts.cumsum()
    at = starts[:-1].copy()
    rows, turned = np.empty(len(latents), np.int32), np.empty(len(latents), np.float32)
    for row in range(len(row_starts) - 1):
        for entry in range(row_starts[row], row_starts[row + 1]):
            place = at[latents[entry]]
            at[latents[entry]] += 1
            rows[place], turned[place] = row, values[entry]
    return starts, rows, turned


@torch.inference_mode()
def encode(sae: SAE, blocks: Iterable[Tensor], device: torch.device = CPU) -> Turned:
    """The codes of all rows of ``blocks``, by latent."""
    counts, latents, values = [np.zeros(1, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for block in blocks:
        codes = sae.encode(put(block, device).float())
        counts.append(codes.active().cpu().numpy())
        latents.append(codes.pattern.latents.to("cpu", torch.int32).numpy())
        values.append(codes.values.cpu().numpy())
    return turn(np.concatenate(counts).cumsum(), np.concatenate(latents), np.concatenate(values), sae.latents)


def write_codes(
    sae: SAE, activations: Activations, folder: Path, device: torch.device = CPU
) -> tuple[list[dict[str, Any]], float]:
    """Write `codes/shard-*.safetensors` in ``folder``, one for each shard of activations.

    Returns what meta.json says of the shards, and the largest activation. In memory there are one shard's codes.
    """
    size, largest, shards = activations.meta["shard_rows"], 0.0, []
    with tqdm(total=activations.rows, desc="encode", unit=" rows", disable=None) as bar:
        for number, first in enumerate(range(0, activations.rows, size)):
            end = min(first + size, activations.rows)
            starts, rows, values = encode(sae, activations.blocks(first, end), device)
            name = f"codes/shard-{number:05d}.safetensors"
            tensors = {"starts": starts, "rows": rows, "values": values}
            write_tensors(folder / name, {key: torch.from_numpy(array) for key, array in tensors.items()})
            shards.append({
                "file": name, "first": first, "rows": end - first, "entries": len(values),
                "sha256": sha256(folder / name),
            })  # fmt: skip
            largest = max(largest, float(values.max(initial=0)))
            bar.update(end - first)
    return shards, largest
