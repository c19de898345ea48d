"""Write out `layers: all` and `layers: every 3` as numbers, because DVC makes a stage of each number in params.yaml."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from strata.corpus import read
from strata.corpus.knobs import LM
from strata.layers import named
from strata.run import params
from strata.run.door import BadInput


def written_out(values: dict[str, Any], depth: Callable[[LM], int]) -> dict[str, list[int]]:
    """Return each key of ``values`` that names layers by a word, with the numbers meant: layers -> [0, 3, 6, 9].

    ``depth``: tells how many blocks a model has. It is called only if there is such a word, because it may be slow.
    """
    stated = {"layers": values.get("layers"), "extract.layers": _inner(values, "extract", "layers")}
    words = {key: word for key, word in stated.items() if isinstance(word, str)}
    if not words:
        return {}

    for key, word in words.items():
        try:
            named(word, 1)  # is it a word that means layers? The model is asked after that
        except BadInput:
            raise BadInput(f"{key} is {params.shown(word)}; it must be a list of layers, all, or every 3") from None

    blocks = depth(params.check(_inner(values, "fetch", "lm"), LM, "fetch.lm"))
    return {key: named(word, blocks) for key, word in words.items()}


def _inner(values: dict[str, Any], section: str, key: str) -> Any:
    """Return the value of ``key`` in ``section``; None if it is missing, or the section is no mapping."""
    inside = values.get(section)
    return inside.get(key) if isinstance(inside, dict) else None


def depth(lm: LM) -> int:
    """Return how many blocks the model of ``fetch.lm`` has, from what fetch has brought, or from its configuration.

    The configuration of a hub model, a small file, is downloaded if it is not in the cache.
    """
    if lm.kind != read.LANGUAGE:
        return 1
    from apps.plan.model import belongs, local  # they import torch
    from strata.lm.model import loading_errors, reason

    folder = Path("data/lm")
    if (folder / "meta.json").is_file() and belongs(meta := read.lm_meta(folder), lm):
        return meta["blocks"]

    from transformers import AutoConfig  # it takes two seconds

    path = None
    try:
        path = local(str(lm.source))
        options = {} if path else {"revision": lm.revision}
        config = AutoConfig.from_pretrained(str(path or lm.source), trust_remote_code=lm.trust_remote_code, **options)
        return config.get_text_config().num_hidden_layers
    except loading_errors() as error:
        if path:
            raise BadInput(f"{path} does not say how many blocks its model has: {reason(error)}") from None
        raise BadInput(
            f"how many blocks {lm.source} has is not known yet; write the layers as numbers, or bring the model in "
            "first: `dvc repro fetch_lm`, if params.yaml names it"
        ) from None
