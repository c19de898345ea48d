"""Our side of the comparison with SAELens: rows, codes and reconstructions of an SAE folder as one safetensors file."""

from pathlib import Path

import torch

from strata.rows.shards import open_activations
from strata.run.door import BadInput, run
from strata.run.files import write_tensors
from strata.sae import disk

ROWS = 2048


@torch.inference_mode()
def main(sae: str, activations: str, target: str) -> None:
    """Write the first test rows of ACTIVATIONS (a layer's folder), and what SAE makes of them, to TARGET."""
    stored = open_activations(Path(activations))
    first, end = stored.split("test")
    if end == first:
        raise BadInput(f"{activations} has no test rows; extract more tokens")
    x = stored.read(first, min(first + ROWS, end)).float()
    ours, _ = disk.load(Path(sae))
    if ours.width != stored.width:
        raise BadInput(f"{sae} is for width {ours.width}, but {activations} has width {stored.width}")
    codes = ours.encode(x)
    write_tensors(
        Path(target), {"x": x, "codes": codes.pattern.dense(codes.values), "reconstruction": ours.decode(codes)}
    )


if __name__ == "__main__":
    run(main)
