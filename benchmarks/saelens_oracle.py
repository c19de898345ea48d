"""The real SAELens opens a folder of ours and must give our codes and our reconstructions.

Runs in an environment of its own (`benchmarks/requirements-saelens.txt`), on what
`benchmarks.saelens_export` wrote in ours.

Two programs sum in different orders, so a pre-activation within rounding of the cut (the threshold, or the k-th largest
of its row) may fall on either side of it. Such a flip is counted, and its row is left out of the errors that decide,
if it is as near to the cut as rounding explains: within TOLERANCE of the norm of its row's codes. Any other flip fails.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from strata.run.door import BadInput, run

TOLERANCE = 1e-4


def errors(ours: Tensor, theirs: Tensor, prefix: str) -> dict[str, float]:
    """‖ours − theirs‖ / ‖theirs‖: of the worst row, and of all rows as one vector."""
    difference, size = (ours - theirs).double(), theirs.double()
    rows = difference.norm(dim=1) / size.norm(dim=1).clamp(min=1e-30)
    return {
        f"{prefix}_worst_row": float(rows.max()),
        f"{prefix}_overall": float(difference.norm() / size.norm()),
    }


def flips(ours: Tensor, theirs: Tensor, threshold: Tensor | None) -> tuple[Tensor, float]:
    """Where one side alone has an active latent, and the largest distance from the cut there, over the row's norm."""
    flipped = (ours > 0) != (theirs > 0)
    value = torch.maximum(ours, theirs)
    if threshold is None:
        active = [torch.where(x > 0, x, torch.inf).amin(1, keepdim=True) for x in (ours, theirs)]
        cut = torch.minimum(*active)
    else:
        cut = threshold.clamp(min=0)
    distance = (value - cut).abs() / theirs.norm(dim=1, keepdim=True)
    return flipped, float(distance[flipped].max()) if flipped.any() else 0.0


def compared(ours: list[Tensor], theirs: list[Tensor], threshold: Tensor | None, where: str) -> dict[str, Any]:
    """Codes and reconstructions of both sides; ``pass`` says whether they agree to TOLERANCE. ``threshold`` None: k."""
    flipped, distance = flips(ours[0], theirs[0], threshold)
    same = ~flipped.any(1)
    if not same.any():
        raise BadInput(f"the two sides agree on no row about which latents are active in {where}")
    names = ("codes", "reconstruction")
    decide, everything = {}, {}
    for name, own, other in zip(names, ours, theirs, strict=True):
        decide |= errors(own[same], other[same], name)
        everything |= errors(own, other, name)
    return {
        "rows": len(same),
        "active": int((theirs[0] > 0).sum()),
        "flipped_codes": int(flipped.sum()),
        "flipped_rows": int((~same).sum()),
        "flip_distance": distance,
        **decide,
        "all_rows": everything,
        "tolerance": TOLERANCE,
        "pass": all(value <= TOLERANCE for value in (*decide.values(), distance)),  # NaN fails
    }


@torch.inference_mode()
def main(sae: str, rows: str) -> None:
    """Load the folder SAE with SAELens and compare with ROWS, the file that benchmarks.saelens_export wrote."""
    if not (Path(sae) / "cfg.json").is_file():
        raise BadInput(f"{sae} is no SAE folder: it has no cfg.json")
    if not Path(rows).is_file():
        raise BadInput(f"{rows} is missing; write it with `python -m benchmarks.saelens_export`")
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]

    tensors = load_file(rows)
    loaded = SAE.load_from_disk(sae)
    codes = loaded.encode(tensors["x"])
    ours, theirs = [tensors["codes"], tensors["reconstruction"]], [codes, loaded.decode(codes)]
    tool = {"sae_lens": importlib.metadata.version("sae-lens"), "architecture": loaded.cfg.architecture()}
    found = compared(ours, theirs, getattr(loaded, "threshold", None), sae)
    print(json.dumps({"sae": sae, **tool, **found}, indent=2))
    if not found["pass"]:
        raise BadInput(f"SAELens and Strata differ on {sae} by more than {TOLERANCE}")


if __name__ == "__main__":
    run(main)
