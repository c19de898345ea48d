"""sparsify or dictionary_learning opens an export of ours by its own loader, and must give our codes.

Runs in the tool's own environment (`benchmarks/requirements-sparsify.txt`, `requirements-dictionary-learning.txt`), on
what `benchmarks.saelens_export` wrote of the same SAE in ours. For SAELens there is `benchmarks.saelens_oracle`.
"""

import importlib.metadata
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.saelens_oracle import TOLERANCE, compared
from strata.run.door import BadInput, run


def sparsify(folder: str, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Codes, reconstruction, and that k decides."""
    from sparsify import SparseCoder  # pyright: ignore[reportMissingImports]

    coder = SparseCoder.load_from_disk(folder)
    found = coder.encode(x)
    codes = torch.zeros(len(x), coder.num_latents).scatter(1, found.top_indices, found.top_acts)
    return [codes, coder.decode(found.top_acts, found.top_indices)], None


def dictionary_learning(folder: str, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Codes, reconstruction, and the thresholds, unless k decides."""
    from dictionary_learning.utils import load_dictionary  # pyright: ignore[reportMissingImports]

    coder, _ = load_dictionary(folder, device="cpu")
    codes = coder.encode(x)
    by_k = type(coder).__name__ == "AutoEncoderTopK"
    return [codes, coder.decode(codes)], None if by_k else getattr(coder, "threshold", torch.zeros(1))


TOOLS = {"sparsify": (sparsify, "eai-sparsify"), "dictionary_learning": (dictionary_learning, "dictionary-learning")}


@torch.inference_mode()
def main(tool: str, folder: str, rows: str) -> None:
    """TOOL: sparsify or dictionary_learning. FOLDER: what src.convert wrote for it. ROWS: of saelens_export."""
    if tool not in TOOLS or not Path(rows).is_file():
        raise BadInput(f"{tool} must be one of {', '.join(TOOLS)}, and {rows} a file of benchmarks.saelens_export")
    tensors, (load, package) = load_file(rows), TOOLS[tool]
    theirs, threshold = load(folder, tensors["x"])
    found = compared([tensors["codes"], tensors["reconstruction"]], theirs, threshold, folder)
    print(json.dumps({"sae": folder, tool: importlib.metadata.version(package), **found}, indent=2))
    if not found["pass"]:
        raise BadInput(f"{tool} and Strata differ on {folder} by more than {TOLERANCE}")


if __name__ == "__main__":
    run(main)
