"""What other tools made and saved (`benchmarks.convert_make`) is read here, and must give their codes."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.saelens_oracle import compared
from strata.formats.read import read
from strata.formats.say import line
from strata.run.door import BadInput, run


@torch.inference_mode()
def main(folder: str) -> None:
    """Read every SAE below FOLDER that has its tool's forward.safetensors beside it."""
    places = sorted(path.parent for path in Path(folder).rglob("forward.safetensors"))
    if not places:
        raise BadInput(f"{folder} holds no forward.safetensors; write them with `python -m benchmarks.convert_make`")
    failed = []
    for place in places:
        found, tensors = read(place), load_file(place / "forward.safetensors")
        codes = found.sae.encode(tensors["x"])
        ours = [codes.pattern.dense(codes.values), found.sae.decode(codes)]
        told = compared(ours, [tensors["codes"], tensors["reconstruction"]], found.sae.threshold, str(place))
        print(json.dumps({"sae": place.relative_to(folder).as_posix(), "read": line(found), **told}, indent=2))
        failed += [] if told["pass"] else [str(place)]
    if failed:
        raise BadInput(f"read otherwise than by their own tools: {', '.join(failed)}")


if __name__ == "__main__":
    run(main)
