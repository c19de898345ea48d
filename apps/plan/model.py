"""Find the sizes of the model that a plan needs: in `data/lm`, a folder, the hub's cache, or the command line.

Only the configuration of the model is read, never a weight.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from strata import sentences
from strata.corpus import read
from strata.corpus.knobs import LM
from strata.lm.model import loading_errors, reason
from strata.run.door import BadInput
from strata.run.resume import places

BLOCK_SQUARES = 12  # parameters of a block ÷ width²: 4 for attention, 8 for an MLP that is four times as wide


@dataclass(frozen=True)
class Model:
    """The sizes of a model.

    ``blocks``: their number. ``block``: parameters of one block. ``head``: parameters of the LM head. ``parameters``:
    those of the whole model. ``stored``: bytes of its files, None where these are not here. ``source``: where the sizes
    are from.
    """

    width: int
    blocks: int
    block: int
    head: int
    parameters: int
    stored: int | None
    source: str

    def until(self, layer: int) -> float:
        """Count the floating-point operations of one token up to and including block ``layer``: two a parameter."""
        return 2.0 * self.block * (layer + 1)

    @property
    def whole(self) -> float:
        """The floating-point operations of one token from the first block to the logits."""
        return 2.0 * (self.block * self.blocks + self.head)


def find_model(lm: LM, folder: Path, facts: dict[str, float]) -> Model:
    """Find the sizes of the model of ``fetch.lm``. ``folder``: data/lm. ``facts``: sizes from the command line.

    Raises BadInput where nothing is known of the model; it says what to give on the command line.
    """
    # From the command line, where it names a size.
    wanted = ("width",) if lm.kind == read.OWN_VECTORS else ("width", "blocks", "parameters")
    given = [name for name in ("width", "blocks", "parameters") if name in facts]
    if given and (missing := [name for name in wanted if name not in facts]):
        raise BadInput(f"{given[0]} is given, but not {missing[0]}; give {', '.join(f'{name}=…' for name in wanted)}")
    if given:
        return told(int(facts["width"]), int(facts.get("blocks", 1)), int(facts.get("parameters", 0)))

    # From what fetch has brought.
    if (folder / "meta.json").is_file() and belongs(meta := read.lm_meta(folder), lm):
        if lm.kind == read.OWN_VECTORS:
            raise BadInput("how long the vectors are is not known before they are read; give width=…")
        return described(lm.kind, *read.lm_path(folder, check=False), stored=meta["bytes"], source=str(folder))

    # From a folder or the hub's cache.
    path = None
    try:
        path = sentences.find(str(lm.source)) if lm.kind == read.SENTENCE else local(str(lm.source))
        options = {"local_files_only": True} if path else {"local_files_only": True, "revision": lm.revision}
        return described(lm.kind, str(path or lm.source), options, None, str(lm.source))
    except loading_errors() as error:
        if path:
            raise BadInput(f"{path} does not say how large its model is: {reason(error)}") from None
        raise BadInput(
            f"nothing is known of {lm.source} yet; bring it in with `dvc repro fetch_lm`, or give width=… blocks=… "
            "parameters=… (of GPT-2: width=768 blocks=12 parameters=124e6)"
        ) from None


def described(kind: str, name: str, options: dict[str, Any], stored: int | None, source: str) -> Model:
    """Describe a model by its configuration, which transformers reads. Parameters are counted, but not allocated."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM  # takes two seconds

    config = AutoConfig.from_pretrained(name, **options)
    text = config.get_text_config()
    with torch.device("meta"):  # tensors with shapes, but without memory
        model = (AutoModelForCausalLM if kind == read.LANGUAGE else AutoModel).from_config(config)

    # The parameters inside blocks have the number of their block in the name: `model.layers.3.mlp…`.
    inside = sum(p.numel() for name, p in model.named_parameters() if re.search(r"\.\d+\.", name))
    every = sum(p.numel() for p in model.parameters())  # a head that is tied to the embeddings counts once
    head = model.get_output_embeddings()
    return Model(
        width=text.hidden_size,
        blocks=text.num_hidden_layers,
        block=inside // max(1, text.num_hidden_layers),
        head=head.weight.numel() if head is not None else 0,
        parameters=every,
        stored=stored,
        source=source,
    )


def local(source: str) -> Path | None:
    """Find the folder ``source``, here or in the main checkout; None if there is none.

    A GGUF file does not count: its sizes are known only after fetch has unpacked it.
    """
    return next((path for path in places(source) if path.is_dir()), None)


def told(width: int, blocks: int, parameters: int) -> Model:
    """Describe a model of which three numbers are known.

    A block gets BLOCK_SQUARES × width² parameters, and the head gets what is left. Where there are not so many, the
    blocks share all of them.
    """
    block = min(BLOCK_SQUARES * width**2, parameters // blocks)
    return Model(width, blocks, block, parameters - block * blocks, parameters, None, "the command line")


def belongs(meta: dict[str, Any], lm: LM) -> bool:
    """Say whether ``meta``, which fetch wrote, is of the model that params.yaml asks for."""
    if lm.source is None:
        return meta["kind"] == lm.kind
    return meta["kind"] == lm.kind and meta["source"] in (lm.source, Path(lm.source).name)
