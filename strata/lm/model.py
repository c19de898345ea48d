"""A language model whose residual stream can be read (`capture`) and changed (`edit`).

A model is checked when it is opened: `strata/lm/anatomy.py` finds its blocks and their parts, and refuses what cannot
be read rightly. The identity that pins the four hooks down:  resid_pre + attn_out + mlp_out = resid_post.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from strata.lm.anatomy import (
    FOREIGN,
    Anatomy,
    examine,
    find_blocks,
    find_trunk,
    last_states,
    logits_of,
    stream_from,
    stream_into,
)
from strata.run import calls
from strata.run.door import BadInput
from strata.run.params import Hook

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class LanguageModel:
    """A decoder-only model, its tokenizer and its blocks in order."""

    model: "PreTrainedModel"
    blocks: nn.ModuleList
    open_tokenizer: Callable[[], "PreTrainedTokenizerBase"]

    @property
    def anatomy(self) -> Anatomy:
        """Which modules a block's parts come out of; measured when the model was opened."""
        return examine(self.model, self.blocks)

    @cached_property
    def trunk(self) -> nn.Module:
        """The model without its LM head."""
        return find_trunk(self.model, self.blocks)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Opened when asked for: a large vocabulary takes seconds, and stages that only run the model do without."""
        name = self.model.name_or_path
        with _told(str(name)):
            found = self.open_tokenizer()
        if len(found) <= len(set(found.all_special_ids)):  # what transformers makes up where there are no files
            raise BadInput(f"no language model could be loaded from {name}: its tokenizer has no words")
        return found

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.anatomy.width

    @property
    def positions(self) -> int | None:
        """Tokens of a context at the most, BOS included; None where nothing bounds them."""
        return self.anatomy.positions

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def bos(self) -> int:
        """The token that opens every context: BOS, else the end-of-text token that GPT-2's kin use for it."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        raise BadInput(f"the tokenizer of {self.model.name_or_path} has neither a BOS nor an EOS token")

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each of ``texts``, without the BOS and the like that a tokenizer puts around them.

        Nor with a BOS that a text itself begins with, written out or from a chat template: whoever runs the model puts
        one in front of every text.
        """
        bos, mark = self.bos, self.tokenizer.bos_token or self.tokenizer.eos_token
        begun = [_without(text, str(mark)) if mark else text for text in texts]
        found = self.tokenizer(begun, add_special_tokens=False, verbose=False)["input_ids"] if begun else []
        return [list(dropwhile(lambda token: token == bos, tokens)) for tokens in found]  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]

    def special_ids(self) -> Tensor:
        """Token ids that are never trained on, counted or replaced (BOS, padding …), sorted."""
        return torch.tensor(sorted(set(self.tokenizer.all_special_ids)), device=self.device)


def _without(text: str, mark: str) -> str:
    """``text`` without the ``mark`` that it begins with, once or more often."""
    while text.lstrip().startswith(mark):
        text = text.lstrip().removeprefix(mark)
    return text


def load(source: str | Path, dtype: torch.dtype, device: torch.device, **kwargs: Any) -> LanguageModel:
    """Load a folder (or a name in the hub's cache) for inference, in ``dtype``, and check it by a short pass.

    Raises BadInput for what cannot be loaded whole, and for what :func:`strata.lm.anatomy.examine` refuses.
    """
    with _uncollected():  # takes two seconds, which a stage that stops at the door, or only trains, does without
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

    bar = transformers.logging.enable_progress_bar if sys.stderr.isatty() else transformers.logging.disable_progress_bar
    bar()
    with _told(source), _uncollected(), _no_report():
        options = {**kwargs, "dtype": dtype, "output_loading_info": True}
        model, loaded = AutoModelForCausalLM.from_pretrained(source, **options)  # pyright: ignore[reportGeneralTypeIssues]
    if absent := sorted(loaded["missing_keys"]):
        raise BadInput(
            f"{source} lacks {len(absent)} of the weights of {type(model).__name__}, {absent[0]} for one, "
            "and transformers would put random numbers there"
        )
    if unread := sorted(loaded["unexpected_keys"]):
        kind = type(model).__name__
        sys.stderr.write(f"{source}: {kind} has no place for {len(unread)} of the weights, {unread[0]} for one\n")
    model.requires_grad_(False)
    model.eval().to(device)  # pyright: ignore[reportArgumentType]  # transformers' stub of .to
    examine(model, find_blocks(model))

    # generate() hands the head a slice of its states; torch multiplies that on a CPU as one product a text, each with
    # its own copy of the head: 32 texts of Gemma's are 11 GB and half a minute where a step takes 0.1 s.
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    model.get_input_embeddings().register_forward_pre_hook(_refuse_unknown)
    return LanguageModel(model, find_blocks(model), lambda: AutoTokenizer.from_pretrained(source, **kwargs))


def _refuse_unknown(table: nn.Module, args: tuple[Any, ...]) -> None:
    """Refuse tokens behind the end of the embeddings, which a tokenizer with later additions can give."""
    rows = len(table.weight) if isinstance(table.weight, Tensor) else 0
    if len(args) and args[0].numel() and (last := int(args[0].max())) >= rows:
        raise BadInput(f"the text holds token {last}, but the model has embeddings of 0 to {rows - 1} alone")


def wrapped(model: "PreTrainedModel") -> LanguageModel:
    """A model of transformers' that is loaded already, checked the first time that it is seen."""
    from transformers import AutoTokenizer

    blocks = find_blocks(model)
    examine(model, blocks)
    return LanguageModel(model, blocks, lambda: AutoTokenizer.from_pretrained(model.name_or_path))


def mute(lm: LanguageModel) -> str | None:
    """Why nothing can be asked of a model that writes no text; None of one that does."""
    if lm.model.can_generate():
        return None
    return f"not applicable: {type(lm.model).__name__} does not generate text"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside the block Python looks for no cycles: among what a large import makes that takes a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _no_report() -> Iterator[None]:
    """Inside the block transformers prints no table of weights that do not fit: :func:`load` says it in a sentence."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


@contextmanager
def _told(source: str | Path) -> Iterator[None]:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ImportError, SafetensorError, StrictDataclassError, *FOREIGN) as error:
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "  # a KeyError is a word
        said = " ".join(str(error).split())
        raise BadInput(f"no language model could be loaded from {source}: {kind}{said}") from error


def check_layers(layers: Sequence[int], depth: int, where: str = "params.yaml: layers") -> None:
    """Refuse layers that the model does not have, twice the same, or none."""
    if not layers:
        raise BadInput(f"{where} is empty; name at least one layer from 0 to {depth - 1}")
    if len(set(layers)) < len(layers):
        raise BadInput(f"{where} names a layer twice: {list(layers)}")
    for layer in layers:
        if not 0 <= layer < depth:
            raise BadInput(f"{where} names layer {layer}, but the model has {depth} blocks: 0 to {depth - 1}")


def check_hook(lm: LanguageModel, hook: Hook, layers: Sequence[int]) -> None:
    """Refuse a hook of which some of ``layers`` have nothing that adds up."""
    for layer in layers:
        module_at(lm, hook, layer)


def module_at(lm: LanguageModel, hook: Hook, layer: int) -> tuple[nn.Module, float]:
    """The module whose output is what flows at ``hook``, and the factor that it is added with. Of resid_pre: the block,
    whose input it is."""
    block, parts = lm.blocks[layer], lm.anatomy.parts[layer]
    if hook in ("resid_pre", "resid_post"):
        return block, 1.0
    if isinstance(parts, str):
        raise BadInput(
            f"{hook} of block {layer} cannot be read ({type(block).__name__}: {parts}); use resid_post or resid_pre"
        )
    part = parts.attn_out if hook == "attn_out" else parts.mlp_out
    return block.get_submodule(part.module), part.factor


@contextmanager
def capture(lm: LanguageModel, hook: Hook, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Inside the block, a forward pass leaves {layer: (context, position, width)} in the yielded dict.

    The pass goes on to the end; :func:`forward_until` stops it after the last layer. Raises BadInput for a layer or a
    hook that there is not.
    """
    check_layers(layers, len(lm.blocks), "layers")
    calls.choice("hook", hook, get_args(Hook))
    seen: dict[int, Tensor] = {}

    def keep(layer: int, activations: Tensor) -> None:
        seen[layer] = activations.clone() if lm.anatomy.in_place else activations

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_hooked(lm, layer, hook, partial(keep, layer)))
        yield seen


@contextmanager
def edit(lm: LanguageModel, hook: Hook, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, what flows through ``hook`` of ``layer`` is replaced by ``change`` of it.

    ``change`` must return a new tensor (context, position, width); hooks are gone after the block, also after an error.
    Raises BadInput for a layer or hook that there is not.
    """
    calls.whole("layer", layer, 0, len(lm.blocks) - 1)
    calls.choice("hook", hook, get_args(Hook))
    with _hooked(lm, layer, hook, change):
        yield


@contextmanager
def shared_start(lm: LanguageModel, layer: int) -> Iterator[None]:
    """Inside the block, forward passes must be of the same tokens: blocks before ``layer`` run in the first alone, but
    for models that write over what a block returned."""
    with ExitStack() as stack:
        for block in lm.blocks[:layer] if not lm.anatomy.in_place else ():
            block.forward = _once(block.forward)
            stack.callback(delattr, block, "forward")  # the class's own is seen again
        yield


def _once(run: Callable[..., Any]) -> Callable[..., Any]:
    outputs: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not outputs:
            outputs.append(run(*args, **kwargs))
        return outputs[0]

    return forward


class _Stop(Exception):
    """Ends a forward pass from inside a hook."""


def forward_until(
    lm: LanguageModel, layer: int, *, tokens: Tensor | None = None, embeddings: Tensor | None = None
) -> None:
    """Run the model up to and with block ``layer``: no later block, no LM head.

    It reads ``tokens`` (context, position), or ``embeddings`` (context, position, width) in their place. There is no
    attention mask: padding stands to the right, and causal attention never looks there.
    """

    def stop(*_: Any) -> None:
        raise _Stop

    handle = lm.blocks[layer].register_forward_hook(stop)
    try:
        lm.trunk(input_ids=tokens, inputs_embeds=embeddings, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()


def final_states(lm: LanguageModel, tokens: Tensor | None = None, embeddings: Tensor | None = None) -> Tensor:
    """What the LM head reads, (context, position, width): the logits of a position are :func:`logits` of its row.

    ``tokens`` (context, position), or ``embeddings`` (context, position, width) in their place.
    """
    return last_states(lm.trunk(input_ids=tokens, inputs_embeds=embeddings, use_cache=False))


def logits(lm: LanguageModel, states: Tensor) -> Tensor:
    """The model's own LM head, its scales and caps included, on rows of :func:`final_states`: (row, width) -> (row,
    vocabulary), in the model's dtype."""
    return logits_of(lm.model, lm.blocks, states)


@contextmanager
def _hooked(lm: LanguageModel, layer: int, hook: Hook, visit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``visit`` on the tensor at ``hook``; if it returns one, that takes the place of the first."""
    block = lm.blocks[layer]
    module, factor = module_at(lm, hook, layer)
    shape = torch.Size()

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal shape
        residual = stream_into(args, kwargs)
        shape = residual.shape
        new = visit(residual) if hook == "resid_pre" else None
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        tensor = stream_from(output).view(shape)  # OPT's MLP works on flattened rows
        scaled = tensor if factor == 1 else tensor * factor
        new = visit(scaled)
        if new is None:
            return None
        if factor != 1:  # what is left as it was stays so to the bit, which a product and a division would not do
            new = torch.where(new == scaled, tensor, new / factor)
        new = new.view(stream_from(output).shape)
        return type(output)([new, *output[1:]]) if isinstance(output, tuple | list) else new

    handles = [block.register_forward_pre_hook(before, with_kwargs=True)]
    if hook != "resid_pre":
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pieces(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> list[str]:
    """The text of each token by itself, with the space before it where it has one."""
    texts = tokenizer.batch_decode([[token] for token in tokens], clean_up_tokenization_spaces=False)
    marks = tokenizer.convert_ids_to_tokens(list(tokens))
    return [
        f" {text}" if str(mark).startswith("▁") and not text.startswith(" ") else text
        for text, mark in zip(texts, marks, strict=True)
    ]
