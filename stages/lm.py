"""A language model whose residual stream can be read (`capture`) and changed (`edit`).

The blocks and their parts are found by structure, not by a list of model classes. The identity that pins the four
hooks down, for every family, sequential or parallel:  resid_pre + attn_out + mlp_out = resid_post.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.door import BadInput
from stages.params import Hook

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# What a block adds to the residual stream comes out of the last of these that it has. Gemma's sandwich norms come
# first: there the normed output is added, while Llama's `post_attention_layernorm` is only the MLP's input norm.
MLP_PARTS = ("post_feedforward_layernorm", "mlp", "feed_forward", "fc2")
ATTENTION_PARTS = ("self_attn", "attn", "attention", "self_attention")


@dataclass(frozen=True)
class LanguageModel:
    """A decoder-only model, its tokenizer and its blocks in order."""

    model: "PreTrainedModel"
    blocks: nn.ModuleList
    open_tokenizer: Callable[[], "PreTrainedTokenizerBase"]

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
        return self.model.config.get_text_config().hidden_size

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

    def special_ids(self) -> Tensor:
        """Token ids that are never trained on, counted or replaced (BOS, padding …), sorted."""
        return torch.tensor(sorted(set(self.tokenizer.all_special_ids)), device=self.device)


def load(source: str | Path, dtype: torch.dtype, device: torch.device, **kwargs: Any) -> LanguageModel:
    """Load a folder (or a name in the hub's cache) for inference, in ``dtype``."""
    with _uncollected():  # takes two seconds, which a stage that stops at the door, or only trains, does without
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

    bar = transformers.logging.enable_progress_bar if sys.stderr.isatty() else transformers.logging.disable_progress_bar
    bar()
    with _told(source), _uncollected():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **kwargs)
    model.requires_grad_(False)
    model.eval().to(device)  # pyright: ignore[reportArgumentType]  # transformers' stub of .to
    # generate() hands the head a slice of its states; torch multiplies that on a CPU as one product a text, each with
    # its own copy of the head: 32 texts of Gemma's are 11 GB and half a minute where a step takes 0.1 s.
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    return LanguageModel(model, find_blocks(model), lambda: AutoTokenizer.from_pretrained(source, **kwargs))


def wrapped(model: "PreTrainedModel") -> LanguageModel:
    """A model of transformers' that is loaded already."""
    from transformers import AutoTokenizer

    return LanguageModel(model, find_blocks(model), lambda: AutoTokenizer.from_pretrained(model.name_or_path))


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
def _told(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise BadInput(f"no language model could be loaded from {source}: {' '.join(str(error).split())}") from None


def find_blocks(model: "PreTrainedModel") -> nn.ModuleList:
    """The one list of modules as long as the model has layers."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    lists = [m for m in lists if any(hasattr(m[0], part) for part in ATTENTION_PARTS)]
    if len(lists) != 1:
        raise BadInput(
            f"{type(model).__name__} is not a decoder-only transformer that Strata can read: "
            f"it has {len(lists)} lists of {depth} blocks with attention, not one"
        )
    return lists[0]


def check_layers(layers: Sequence[int], depth: int, where: str = "params.yaml: layers") -> None:
    """Refuse layers that the model does not have, twice the same, or none."""
    if not layers:
        raise BadInput(f"{where} is empty; name at least one layer from 0 to {depth - 1}")
    if len(set(layers)) < len(layers):
        raise BadInput(f"{where} names a layer twice: {list(layers)}")
    for layer in layers:
        if not 0 <= layer < depth:
            raise BadInput(f"{where} names layer {layer}, but the model has {depth} blocks: 0 to {depth - 1}")


@contextmanager
def capture(lm: LanguageModel, hook: Hook, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Inside the block, a forward pass leaves {layer: (context, position, width)} in the yielded dict.

    The pass goes on to the end; :func:`forward_until` stops it after the last layer.
    """
    seen: dict[int, Tensor] = {}

    def keep(layer: int, activations: Tensor) -> None:
        seen[layer] = activations

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_hooked(lm.blocks[layer], hook, partial(keep, layer)))
        yield seen


@contextmanager
def edit(lm: LanguageModel, hook: Hook, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, what flows through ``hook`` of ``layer`` is replaced by ``change`` of it.

    ``change`` must return a new tensor (context, position, width); hooks are gone after the block, also after an error.
    """
    with _hooked(lm.blocks[layer], hook, change):
        yield


@contextmanager
def shared_start(lm: LanguageModel, layer: int) -> Iterator[None]:
    """Inside the block, forward passes must be of the same tokens: blocks before ``layer`` run in the first alone."""
    with ExitStack() as stack:
        for block in lm.blocks[:layer]:
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
        lm.model.base_model(input_ids=tokens, inputs_embeds=embeddings, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()


def final_states(lm: LanguageModel, tokens: Tensor) -> Tensor:
    """What the LM head reads, (context, position, width): the logits of a position are ``lm_head`` of its row."""
    return lm.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def logits(lm: LanguageModel, states: Tensor) -> Tensor:
    """The LM head on rows of :func:`final_states`, (row, width) -> (row, vocabulary), in the model's dtype."""
    head = lm.model.get_output_embeddings()
    assert head is not None, "a causal language model has a head"
    scores = head(states)
    cap = getattr(lm.model.config.get_text_config(), "final_logit_softcapping", None)
    return scores if cap is None else torch.tanh(scores / cap) * cap


@contextmanager
def _hooked(block: nn.Module, hook: Hook, visit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``visit`` on the tensor at ``hook``; if it returns one, that takes the place of the first."""
    shape = torch.Size()

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal shape
        residual = args[0] if args else kwargs["hidden_states"]
        shape = residual.shape
        new = visit(residual) if hook == "resid_pre" else None
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        new = visit(tensor.view(shape))  # OPT's MLP works on flattened rows
        if new is None:
            return None
        new = new.view(tensor.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handles = [block.register_forward_pre_hook(before, with_kwargs=True)]
    if hook != "resid_pre":
        part = block if hook == "resid_post" else _part(block, hook)
        handles.append(part.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _part(block: nn.Module, hook: Hook) -> nn.Module:
    """The module of ``block`` whose output is added to the residual stream."""
    sandwich = hasattr(block, "post_feedforward_layernorm")
    names = MLP_PARTS if hook == "mlp_out" else ("post_attention_layernorm",) * sandwich + ATTENTION_PARTS
    for name in names:
        part = getattr(block, name, None)
        if isinstance(part, nn.Module):
            return part
    raise BadInput(f"{type(block).__name__} has no part that Strata knows as {hook}; use resid_post or resid_pre")


def pieces(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> list[str]:
    """The text of each token by itself, with the space before it where it has one."""
    texts = tokenizer.batch_decode([[token] for token in tokens], clean_up_tokenization_spaces=False)
    marks = tokenizer.convert_ids_to_tokens(list(tokens))
    return [
        f" {text}" if str(mark).startswith("▁") and not text.startswith(" ") else text
        for text, mark in zip(texts, marks, strict=True)
    ]
