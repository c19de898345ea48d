"""A language model whose residual stream can be read (`capture`) and changed (`edit`).

A model is checked when it is opened: `strata/lm/anatomy.py` finds its blocks and their parts, and refuses a model that
cannot be read rightly. This identity defines the four hooks:  resid_pre + attn_out + mlp_out = resid_post.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from strata.device.machine import fast_dtype
from strata.lm.anatomy import (
    FOREIGN,
    Anatomy,
    examine,
    find_blocks,
    find_trunk,
    last_states,
    logits_of,
    restore,
    stream_from,
    stream_into,
)
from strata.lm.devices import device_of
from strata.run import door
from strata.run.door import BadInput
from strata.run.params import DType, Hook

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPREAD = ("device_map", "max_memory", "offload_folder", "offload_buffers")  # where the weights of a model lie
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def forward_dtype(name: DType, device: torch.device) -> str:
    """Return the dtype of a forward pass on ``device``, a key of DTYPES: ``name``, or in place of auto the fast one."""
    return str(fast_dtype(device)).removeprefix("torch.") if name == "auto" else name


def loaded_bytes(meta: Mapping[str, Any], dtype: str) -> int:
    """Return the bytes of a model's weights in memory, in ``dtype``. ``meta``: its `meta.json`."""
    stored = DTYPES.get(meta["dtype"])
    return meta["bytes"] * DTYPES[dtype].itemsize // stored.itemsize if stored else meta["bytes"]


@dataclass(frozen=True)
class LanguageModel:
    """A decoder-only model, its blocks in order, and the function that opens its tokenizer."""

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
        """The tokenizer, opened at first use: a large vocabulary takes seconds, and not all stages need it."""
        name = self.model.name_or_path
        with _refused(str(name)):
            tokenizer = self.open_tokenizer()
        # Without files transformers makes up a tokenizer that has special tokens alone.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise BadInput(f"no language model could be loaded from {name}: its tokenizer has no words")
        return tokenizer

    @property
    def width(self) -> int:
        """The width of the residual stream."""
        return self.anatomy.width

    @property
    def positions(self) -> int | None:
        """The most tokens of a context, BOS included; None where nothing bounds them."""
        return self.anatomy.positions

    @property
    def device(self) -> torch.device:
        """Where tokens go in, and where activations come out, also of a model that lies on several devices."""
        return device_of(self.model)

    @property
    def bos(self) -> int:
        """The token that opens every context: BOS, else the end-of-text token, which GPT-2 and its like use for it."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        raise BadInput(f"the tokenizer of {self.model.name_or_path} has neither a BOS nor an EOS token")

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise each of ``texts``, without the special tokens that a tokenizer puts around a text, such as BOS.

        A BOS at the beginning of the text itself, written out or from a chat template, is removed too: the code that
        runs the model puts one in front of every text.
        """
        bos, mark = self.bos, self.tokenizer.bos_token or self.tokenizer.eos_token
        bare = [_without(text, str(mark)) if mark else text for text in texts]
        ids = self.tokenizer(bare, add_special_tokens=False, verbose=False)["input_ids"] if bare else []
        return [list(dropwhile(lambda token: token == bos, tokens)) for tokens in ids]  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]

    def special_ids(self) -> Tensor:
        """Return the token ids that are never trained on, counted or replaced (BOS, padding …), sorted."""
        return torch.tensor(sorted(set(self.tokenizer.all_special_ids)), device=self.device)


def _without(text: str, mark: str) -> str:
    """Remove every ``mark`` that ``text`` begins with."""
    while text.lstrip().startswith(mark):
        text = text.lstrip().removeprefix(mark)
    return text


def load(source: str | Path, dtype: torch.dtype, device: torch.device, **kwargs: Any) -> LanguageModel:
    """Load a folder (or a name in the hub's cache) for inference, in ``dtype``, and check it by a short pass.

    ``kwargs`` go to transformers' ``from_pretrained``. With a ``device_map`` among them the model lies where that says,
    and not on ``device``. Raises BadInput for a model that cannot be loaded whole, and for one that
    :func:`strata.lm.anatomy.examine` refuses.
    """
    with _uncollected():  # imported here, because it takes two seconds and many stages do not need it
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

    log = transformers.logging
    set_progress_bar = log.enable_progress_bar if sys.stderr.isatty() else log.disable_progress_bar
    set_progress_bar()
    with _refused(source), _uncollected(), _no_report():
        options = {**kwargs, "dtype": dtype, "output_loading_info": True}
        model, loaded = AutoModelForCausalLM.from_pretrained(source, **options)  # pyright: ignore[reportGeneralTypeIssues]

    # Files and model must fit: weights may be left over, but none may be missing.
    if absent := sorted(loaded["missing_keys"]):
        raise BadInput(
            f"{source} lacks {len(absent)} of the weights of {type(model).__name__}, {absent[0]} for one, "
            "and transformers would put random numbers there"
        )
    if unread := sorted(loaded["unexpected_keys"]):
        kind = type(model).__name__
        sys.stderr.write(f"{source}: {kind} has no place for {len(unread)} of the weights, {unread[0]} for one\n")

    model.requires_grad_(False)
    model.eval()
    if kwargs.get("device_map") is None:
        model.to(device)  # pyright: ignore[reportArgumentType]  # transformers' stub of .to
    examine(model, find_blocks(model))

    # generate() hands the head a slice of its states. On a CPU torch multiplies a slice by one product a text, each
    # with a copy of the head: 32 texts of Gemma's take 11 GB and half a minute, where a step should take 0.1 s.
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    model.get_input_embeddings().register_forward_pre_hook(_refuse_unknown)
    named = {name: value for name, value in kwargs.items() if name not in SPREAD}
    return LanguageModel(model, find_blocks(model), lambda: AutoTokenizer.from_pretrained(source, **named))


def _refuse_unknown(table: nn.Module, args: tuple[Any, ...]) -> None:
    """Refuse tokens behind the end of the embeddings ``table``, which a tokenizer with later additions can make."""
    rows = len(table.weight) if isinstance(table.weight, Tensor) else 0
    if len(args) and args[0].numel() and (last := int(args[0].max())) >= rows:
        raise BadInput(f"the text holds token {last}, but the model has embeddings of 0 to {rows - 1} alone")


def wrapped(model: "PreTrainedModel") -> LanguageModel:
    """Wrap a model that transformers has loaded already; check it the first time that it is seen."""
    from transformers import AutoTokenizer

    blocks = find_blocks(model)
    examine(model, blocks)
    return LanguageModel(model, blocks, lambda: AutoTokenizer.from_pretrained(model.name_or_path))


def mute(lm: LanguageModel) -> str | None:
    """Say why a model that writes no text cannot be asked questions; None for a model that writes text."""
    if lm.model.can_generate():
        return None
    return f"not applicable: {type(lm.model).__name__} does not generate text"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Switch off Python's search for reference cycles inside the block: it takes a fifth of the time of an import."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _no_report() -> Iterator[None]:
    """Keep transformers from printing a table of weights that do not fit: :func:`load` says so in a sentence."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


@contextmanager
def _refused(source: str | Path) -> Iterator[None]:
    """Turn the errors of loading ``source`` into BadInput, in one sentence."""
    try:
        yield
    except loading_errors() as error:
        raise BadInput(f"no language model could be loaded from {source}: {reason(error)}") from error


def loading_errors() -> tuple[type[Exception], ...]:
    """Return the errors that transformers raises where a model's file, such as `config.json`, is broken or missing."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (OSError, ImportError, SafetensorError, StrictDataclassError, *FOREIGN)


def reason(error: Exception) -> str:
    """Write one of :func:`loading_errors` on one line."""
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "  # a KeyError is a word
    return kind + " ".join(str(error).split())


def check_layers(layers: Sequence[int], depth: int, where: str = "params.yaml: layers") -> None:
    """Refuse an empty list of layers, a repeated layer, and a layer that a model of ``depth`` blocks does not have."""
    if not layers:
        raise BadInput(f"{where} is empty; name at least one layer from 0 to {depth - 1}")
    if len(set(layers)) < len(layers):
        raise BadInput(f"{where} names a layer twice: {list(layers)}")
    for layer in layers:
        if not 0 <= layer < depth:
            raise BadInput(f"{where} names layer {layer}, but the model has {depth} blocks: 0 to {depth - 1}")


def check_hook(lm: LanguageModel, hook: Hook, layers: Sequence[int]) -> None:
    """Refuse a hook that cannot be read at one of ``layers``."""
    for layer in layers:
        module_at(lm, hook, layer)


def module_at(lm: LanguageModel, hook: Hook, layer: int) -> tuple[nn.Module, float]:
    """Return the module whose output is the tensor at ``hook``, and the factor with which it is added to the stream.

    For resid_pre the module is the block, whose input is that tensor. Raises BadInput where the parts of the block are
    not known.
    """
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
    """Yield a dict which a forward pass inside the block fills with {layer: (context, position, width)}.

    The pass goes on to the end of the model, unless :func:`forward_until` stops it after the last layer. Raises
    BadInput for a layer or a hook that does not exist.
    """
    check_layers(layers, len(lm.blocks), "layers")
    door.choice("hook", hook, get_args(Hook))
    captured: dict[int, Tensor] = {}

    def keep(layer: int, activations: Tensor) -> None:
        captured[layer] = activations.clone() if lm.anatomy.in_place else activations

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_hooked(lm, layer, hook, partial(keep, layer)))
        yield captured


@contextmanager
def edit(lm: LanguageModel, hook: Hook, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, replace the tensor at ``hook`` of ``layer`` by what ``change`` makes of it.

    ``change`` takes the tensor (context, position, width) and must return a new one. The hooks are removed after the
    block, also after an error. Raises BadInput for a layer or a hook that does not exist.
    """
    door.whole("layer", layer, 0, len(lm.blocks) - 1)
    door.choice("hook", hook, get_args(Hook))
    with _hooked(lm, layer, hook, change):
        yield


@contextmanager
def shared_start(lm: LanguageModel, layer: int) -> Iterator[None]:
    """Inside the block, run the blocks before ``layer`` only in the first forward pass, and reuse their outputs after.

    All passes inside the block must read the same tokens. For a model that writes over the output of a block, every
    pass runs all blocks.
    """
    with ExitStack() as stack:
        for block in lm.blocks[:layer] if not lm.anatomy.in_place else ():
            stack.callback(restore, block, block.__dict__.get("forward"))
            block.forward = _once(block.forward)
        yield


def _once(run: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that calls ``run`` once and then always returns its output."""
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
    """Run the model up to and including block ``layer``, without the later blocks and the LM head.

    It reads ``tokens`` (context, position), or ``embeddings`` (context, position, width) instead. No attention mask is
    needed: padding stands to the right, and causal attention never looks there.
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
    """Compute the input of the LM head, (context, position, width), of which :func:`logits` makes logits.

    The model reads ``tokens`` (context, position), or ``embeddings`` (context, position, width) instead.
    """
    return last_states(lm.trunk(input_ids=tokens, inputs_embeds=embeddings, use_cache=False))


def logits(lm: LanguageModel, states: Tensor) -> Tensor:
    """Apply the model's own LM head, with its scales and caps, to rows of :func:`final_states`.

    (row, width) -> (row, vocabulary), in the model's dtype.
    """
    return logits_of(lm.model, lm.blocks, states)


@contextmanager
def _hooked(lm: LanguageModel, layer: int, hook: Hook, read: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside the block, call ``read`` on the tensor at ``hook``; a tensor that it returns takes that one's place.

    It gets the tensor on the model's device, also where the layer lies on another.
    """
    block, device = lm.blocks[layer], lm.device
    module, factor = module_at(lm, hook, layer)
    shape = torch.Size()

    def visit(tensor: Tensor) -> Tensor | None:
        new = read(tensor.to(device))
        return None if new is None else new.to(tensor.device)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal shape
        residual = stream_into(args, kwargs)
        shape = residual.shape  # for `after`
        new = visit(residual) if hook == "resid_pre" else None
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        tensor = stream_from(output).view(shape)  # OPT's MLP works on flattened rows
        scaled = tensor if factor == 1 else tensor * factor  # the tensor that the block adds to the stream
        new = visit(scaled)
        if new is None:
            return None

        if factor != 1:  # unchanged numbers keep their bits, which a product and a division could change
            new = torch.where(new == scaled, tensor, new / factor)
        new = new.view(stream_from(output).shape)
        return type(output)([new, *output[1:]]) if isinstance(output, tuple | list) else new

    # The block's input gives the shape also where the hook is one of its modules.
    handles = [block.register_forward_pre_hook(before, with_kwargs=True)]
    if hook != "resid_pre":
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pieces(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> list[str]:
    """Decode each token by itself, with the space before it where it has one."""
    texts = tokenizer.batch_decode([[token] for token in tokens], clean_up_tokenization_spaces=False)
    marks = tokenizer.convert_ids_to_tokens(list(tokens))
    return [
        f" {text}" if str(mark).startswith("▁") and not text.startswith(" ") else text
        for text, mark in zip(texts, marks, strict=True)
    ]
