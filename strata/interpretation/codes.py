"""Encode a layer's activations in one streamed pass, and write the sparse codes by latent, a shard at a time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from strata.device.machine import CPU, put
from strata.rows.shards import Activations
from strata.run import resume
from strata.run.progress import Progress
from strata.sae.engine.pattern import joined
from strata.sae.sae import SAE


@torch.inference_mode()
def encode(sae: SAE, blocks: Iterable[Tensor], device: torch.device = CPU) -> dict[str, Tensor]:
    """Encode all rows of ``blocks``, (rows, width) each, and order the codes by latent.

    Returns starts (latents + 1,), rows and values (entries,). Rows count from 0, the first row of the first block.
    """
    codes_of_blocks = [sae.encode(put(block, device).float()) for block in blocks]
    # The codes come row by row. ``order`` (entries,) is the permutation that sorts them by latent.
    order, starts, rows = joined([codes.pattern for codes in codes_of_blocks]).transposed
    values = torch.cat([codes.values for codes in codes_of_blocks])[order]
    return {"starts": starts.cpu(), "rows": rows.int().cpu(), "values": values.cpu()}


def write_codes(
    sae: SAE, activations: Activations, folder: Path, device: torch.device = CPU
) -> tuple[list[dict[str, Any]], float]:
    """Write `codes/shard-*.safetensors` in ``folder``, one for each shard of activations.

    In a file, rows count from 0, the first row of the shard. A shard that is there and whole is not computed again.
    Memory holds the codes of one shard. Returns what meta.json says of the shards, and the largest code of any latent,
    0 if none is active.
    """
    size, largest, shards = activations.meta["shard_rows"], 0.0, []
    with Progress("encode", "rows", activations.rows) as progress:
        for number, first in enumerate(range(0, activations.rows, size)):
            end = min(first + size, activations.rows)
            name = f"codes/shard-{number:05d}.safetensors"

            if resume.whole(folder / name):
                with safe_open(folder / name, "pt") as file:
                    values = file.get_tensor("values")  # counted below, and the largest is taken
            else:
                tensors = encode(sae, activations.blocks(first, end), device)
                values = tensors["values"]
                resume.keep_tensors(folder / name, tensors)

            shards.append({
                "file": name, "first": first, "rows": end - first, "entries": len(values),
                "sha256": resume.sealed_hash(folder / name),
            })  # fmt: skip
            largest = max(largest, float(values.max()) if len(values) else 0.0)
            progress.update(end - first)
    return shards, largest
