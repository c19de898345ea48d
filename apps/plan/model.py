"""What a plan must know of the model: from `data/lm`, a folder, the hub's cache, or the command line.

Only its configuration is read, never a weight.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from strata.corpus import read
from strata.corpus.knobs import LM
from strata.lm import sentences
from strata.run.door import BadInput
from strata.run.resume import main_root

WIDE = 12  # parameters of a block, in squares of the width: 4 of attention, 8 of an MLP four times as wide


@dataclass(frozen=True)
class Model:
    """``blocks`` of ``block`` parameters each; ``head``: those that the logits of a token cost; ``parameters``: all.

    ``stored``: bytes of its files, None where they are not here to be measured. ``source``: where this is known from.
    """

    width: int
    blocks: int
    block: int
    head: int
    parameters: int
    stored: int | None
    source: str

    def until(self, layer: int) -> float:
        """Floating-point operations of one token through block ``layer``: two a parameter."""
        return 2.0 * self.block * (layer + 1)

    @property
    def whole(self) -> float:
        """Operations of one token's logits."""
        return 2.0 * (self.block * self.blocks + self.head)


def find_model(lm: LM, folder: Path, facts: dict[str, float]) -> Model:
    """The model of ``fetch.lm``. BadInput says what to tell a plan of one that is not here."""
    wanted = ("width",) if lm.kind == read.OWN_VECTORS else ("width", "blocks", "parameters")
    given = [name for name in ("width", "blocks", "parameters") if name in facts]
    if given and (missing := [name for name in wanted if name not in facts]):
        raise BadInput(f"{given[0]} is given, but not {missing[0]}; give {', '.join(f'{name}=…' for name in wanted)}")
    if given:
        return told(int(facts["width"]), int(facts.get("blocks", 1)), int(facts.get("parameters", 0)))
    if (folder / "meta.json").is_file() and belongs(meta := read.lm_meta(folder), lm):
        if lm.kind == read.OWN_VECTORS:
            raise BadInput("how long the vectors are is not known before they are read; give width=…")
        return described(lm.kind, *read.lm_path(folder, check=False), stored=meta["bytes"], source=str(folder))
    try:
        path = sentences.find(str(lm.source)) if lm.kind == read.SENTENCE else local(str(lm.source))
        options = {"local_files_only": True} if path else {"local_files_only": True, "revision": lm.revision}
        return described(lm.kind, str(path or lm.source), options, None, str(lm.source))
    except (OSError, ValueError):
        raise BadInput(
            f"nothing is known of {lm.source} yet; bring it in with `dvc repro fetch_lm`, or give width=… blocks=… "
            "parameters=… (of GPT-2: width=768 blocks=12 parameters=124e6)"
        ) from None


def described(kind: str, name: str, options: dict[str, Any], stored: int | None, source: str) -> Model:
    """A model whose configuration transformers can read; its parameters are counted without being made."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM  # takes two seconds

    config = AutoConfig.from_pretrained(name, **options)
    text = config.get_text_config()
    with torch.device("meta"):
        model = (AutoModelForCausalLM if kind == read.LANGUAGE else AutoModel).from_config(config)
    inside = sum(p.numel() for name, p in model.named_parameters() if re.search(r"\.\d+\.", name))
    every = sum(p.numel() for p in model.parameters())  # a head that is tied to the embeddings counts once
    head = model.get_output_embeddings()
    return Model(
        text.hidden_size, text.num_hidden_layers, inside // text.num_hidden_layers,
        head.weight.numel() if head is not None else 0, every, stored, source,
    )  # fmt: skip


def local(source: str) -> Path | None:
    """A folder, here or in the main checkout. What a GGUF file holds is known when fetch has unpacked it."""
    return next((path for path in (Path(source).expanduser(), main_root() / source) if path.is_dir()), None)


def told(width: int, blocks: int, parameters: int) -> Model:
    """A model of which three numbers are known. Blocks get ``WIDE`` × width² parameters each, the head what is left;
    where that is nothing, blocks share all of them."""
    block = min(WIDE * width**2, parameters // blocks)
    return Model(width, blocks, block, parameters - block * blocks, parameters, None, "the command line")


def belongs(meta: dict[str, Any], lm: LM) -> bool:
    """Whether what fetch wrote is what params.yaml asks for."""
    if lm.source is None:
        return meta["kind"] == lm.kind
    return meta["kind"] == lm.kind and meta["source"] in (lm.source, Path(lm.source).name)
