"""How a language model is put together: found by structure, then measured on one short pass instead of believed.

A transformer block adds two things to the residual stream, and which modules they come out of differs from family to
family: before or after a norm, times a constant, inside the module that also adds the stream. So a block's modules are
all watched once, and its parts are those two that really add up:

    resid_pre + attn_out + mlp_out = resid_post,    attn_out and mlp_out each a module's output times a factor

The same pass tells whether the stream is (context, position, width), whether a token's row depends on later tokens, and
whether :func:`logits_of` gives the model's own logits. Who has not these is refused in a sentence.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from strata.run.door import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = ("self_attn", "attn", "attention", "self_attention")  # what families call a block's attention
LENGTHS = ("max_position_embeddings", "max_seq_len")  # what families call their longest context
POSITIONS = 12  # of each of the two contexts that are tried; they differ from the middle on
SAME = 1e-4  # norm of a difference, over the norm, from which two float32 results count as different; see `_tolerance`
# What a model that is no decoder of plain tokens raises when it is run as one.
FOREIGN = (
    AttributeError,
    AssertionError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Part:
    """What is added to the stream: the output of ``module``, by its name in the block, times ``factor``."""

    module: str
    factor: float


class Parts(NamedTuple):
    """Those of one block."""

    attn_out: Part
    mlp_out: Part


@dataclass(frozen=True)
class Anatomy:
    """``width``: of the residual stream. ``positions``: tokens of a context at the most; None where nothing bounds
    them. ``parts``: of each block, or why it has none that add up. ``in_place``: the model writes over tensors that a
    hook has seen, so who keeps one must copy it."""

    width: int
    positions: int | None
    parts: tuple[Parts | str, ...]
    in_place: bool


_examined: "WeakKeyDictionary[PreTrainedModel, Anatomy]" = WeakKeyDictionary()


def find_blocks(model: "PreTrainedModel") -> nn.ModuleList:
    """The one list of blocks with attention in them; where a model has several, that of its text configuration."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and any(map(_attends, m))]
    if len(lists) > 1:
        depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
        lists = [m for m in lists if len(m) == depth]
    if len(lists) != 1:
        raise BadInput(
            f"{type(model).__name__} is not a decoder-only transformer that Strata can read: "
            f"it has {len(lists) or 'no'} lists of blocks with attention, not one"
        )
    return lists[0]


def _attends(block: nn.Module) -> bool:
    """Whether there is attention in a block, itself or one level down; a block is no list of blocks."""
    inner = [name for name, _ in block.named_modules() if name.count(".") < 2]
    return not isinstance(block, nn.ModuleList) and any(name.rpartition(".")[2] in ATTENTION for name in inner)


def find_trunk(model: "PreTrainedModel", blocks: nn.ModuleList) -> nn.Module:
    """What stands below the LM head: the child of ``model`` that holds the blocks, else the model itself."""
    holders = [child for child in model.children() if child is not blocks and _holds(child, blocks)]
    return holders[0] if holders else model


def _holds(module: nn.Module, blocks: nn.ModuleList) -> bool:
    return any(inner is blocks for inner in module.modules())


def positions_of(model: "PreTrainedModel") -> int | None:
    """Tokens that a context of ``model`` may have: what its configuration says, and no more than it has embeddings of
    positions; None where neither bounds it."""
    config = model.config.get_text_config()
    said = [getattr(config, name, None) for name in LENGTHS]
    limits = [value for value in said if isinstance(value, int) and value > 0][:1]
    for name, table in model.named_modules():
        if isinstance(table, nn.Embedding) and any(word in name.rpartition(".")[2] for word in ("position", "wpe")):
            # RoBERTa begins to count behind the padding token's row, OPT and BART after two rows.
            skipped = table.padding_idx + 1 if table.padding_idx is not None else getattr(table, "offset", 0)
            limits.append(table.num_embeddings - skipped)
    return min(limits, default=None)


def logits_of(model: "PreTrainedModel", blocks: nn.ModuleList, states: Tensor) -> Tensor:
    """Logits (row, vocabulary) of final ``states`` (row, width), by the model's own forward pass.

    Families scale, cap and shift logits in that forward pass, outside their `lm_head`. So it is run whole, while what
    stands below the head answers with ``states`` at once.
    """

    def answer(*_: Any, **__: Any) -> Any:
        return _States(states[None])

    below = [m for m in find_trunk(model, blocks).modules() if m is not blocks and _holds(m, blocks)]
    with ExitStack() as stack:
        for module in below:  # OPT's model calls its `decoder` by name, past the module around it
            stack.callback(_restore, module, module.__dict__.get("forward"))
            module.forward = answer
        tokens = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        return model(input_ids=tokens, use_cache=False).logits[0]


def _restore(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    del module.forward
    if forward is not None:
        module.forward = forward


class _States(tuple):
    """What a trunk returns, as any family's head may ask for it: the last states, and nothing else."""

    last_hidden_state: Tensor

    def __new__(cls, states: Tensor) -> "_States":
        made = super().__new__(cls, (states,))
        made.last_hidden_state = states
        return made

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):  # those that Python asks for tell it what a class can do
            raise AttributeError(name)


# --- one short pass -----------------------------------------------------------------------------------------------


def examine(model: "PreTrainedModel", blocks: nn.ModuleList) -> Anatomy:
    """Run a model once on two short rows of tokens; what was found is remembered as long as the model lives.

    Raises BadInput for a model that cannot be read rightly: it does not run on plain tokens, its stream is not one
    tensor (context, position, width), its rows depend on later tokens, its numbers are not finite, or :func:`logits_of`
    differs from it.
    """
    if (known := _examined.get(model)) is not None:
        return known
    modes = {module: module.training for module in model.modules()}
    model.eval()  # dropout would look like a dependence on later tokens
    try:
        with torch.no_grad():
            found = _examined[model] = _examine(model, blocks)
    finally:
        for module, training in modes.items():
            module.training = training
    return found


@contextmanager
def _refused(model: "PreTrainedModel") -> Iterator[None]:
    """What a model's own code raises is its refusal to be run as a decoder."""
    try:
        yield
    except FOREIGN as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadInput(f"{type(model).__name__} cannot be run on plain tokens as a decoder ({said})") from error


def _examine(model: "PreTrainedModel", blocks: nn.ModuleList) -> Anatomy:
    name = type(model).__name__
    with _refused(model):
        tokens = _rows_of_tokens(model)
    below = find_trunk(model, blocks)
    watched = [_Block(block) for block in blocks]
    states: list[Tensor] = []

    with ExitStack() as stack:
        for block in watched:
            stack.enter_context(block.watched())
        if below is not model:
            keep = below.register_forward_hook(lambda _m, _a, output: states.append(last_states(output)))
            stack.callback(keep.remove)
        with _refused(model):
            output = model(input_ids=tokens, use_cache=False)

    shapes = {tuple(seen.copy.shape) for block in watched for seen in (block.before, block.after)}
    width = watched[0].before.copy.shape[-1]
    if shapes != {(*tokens.shape, width)}:
        told = " and ".join(str(shape) for shape in sorted(shapes, key=str))
        raise BadInput(
            f"{name} has no residual stream of (context, position, width): for {tuple(tokens.shape)} tokens its blocks "
            f"pass on {told}"
        )

    for number, block in enumerate(watched):
        if not torch.isfinite(block.after.copy).all():
            dtype = str(block.after.copy.dtype).removeprefix("torch.")
            raise BadInput(f"{name} computes NaN or infinity in block {number}, in {dtype}; try float32")

    last, half = watched[-1].after.copy, POSITIONS // 2
    if not same(last[0, :half], last[1, :half]):
        raise BadInput(
            f"{name} attends both ways: what it says of a token depends on the tokens behind it; "
            "Strata reads models that look back only"
        )
    if states:
        _check_head(model, blocks, states[0], output.logits)
    parts, in_place = tuple(block.parts for block in watched), any(block.in_place for block in watched)
    return Anatomy(width, positions_of(model), parts, in_place)


def _rows_of_tokens(model: "PreTrainedModel") -> Tensor:
    """Two rows of tokens (2, POSITIONS) from all over the vocabulary, equal up to the middle."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    spread = torch.linspace(0, len(table) - 1, 2 * POSITIONS + 1, device=table.device).long()
    rows = spread[1::2].repeat(2, 1)
    rows[1, POSITIONS // 2 :] = spread[POSITIONS:-1:2][: POSITIONS - POSITIONS // 2]
    return rows


def last_states(output: Any) -> Tensor:
    """The final states among what a trunk returns."""
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]


def _check_head(model: "PreTrainedModel", blocks: nn.ModuleList, states: Tensor, logits: Tensor) -> None:
    with _refused(model):
        ours = logits_of(model, blocks, states.flatten(0, 1))
    if ours.shape != logits.flatten(0, 1).shape or not same(ours, logits.flatten(0, 1)):
        raise BadInput(
            f"{type(model).__name__} makes its logits of more than the final states of its blocks, so that Strata "
            "could not say what it predicts after a change"
        )


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two ways to the same numbers agree to rounding."""
    difference = (a.double() - b.double()).norm()
    return float(difference) <= _tolerance(b.dtype) * float(b.double().norm())


def _tolerance(dtype: torch.dtype) -> float:
    """Two ways to the same number differ by roundings: 1e-4 in float32, 2 in 64 in bfloat16."""
    return max(SAME, 4 * torch.finfo(dtype).eps)


# --- the parts of a block -----------------------------------------------------------------------------------------


def stream_into(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream among what a block is called with."""
    return args[0] if args else kwargs["hidden_states"]


def stream_from(output: Any) -> Tensor:
    """The tensor that a block or a module of it passes on; others may stand behind it in a tuple or list."""
    return output[0] if isinstance(output, tuple | list) else output


class _Seen:
    """A tensor of the pass, and a copy of it that no later write reaches."""

    def __init__(self, tensor: Tensor, attention: bool = False) -> None:
        self.tensor, self.copy, self.attention = tensor, tensor.clone(), attention

    @property
    def written_over(self) -> bool:
        return not torch.equal(self.tensor, self.copy)


class _Block:
    """What one block does in the pass: the stream ``before`` and ``after`` it, its ``parts``, and whether tensors that
    a hook could have kept were written over."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.before = self.after = _Seen(torch.zeros(0))
        self.parts: Parts | str = "it was not run"
        self._outputs: dict[str, _Seen | None] = {}  # of each module by name; None where it ran more than once
        self._in_place = False

    @property
    def in_place(self) -> bool:
        return self._in_place or self.after.written_over

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside the `with`, a forward pass fills this record in."""
        inner = [(name, module) for name, module in self.block.named_modules() if name]
        handles = [self.block.register_forward_pre_hook(self._enter, with_kwargs=True)]
        handles += [module.register_forward_hook(partial(self._keep, name)) for name, module in inner]
        handles.append(self.block.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.before = _Seen(stream_into(args, kwargs))

    def _keep(self, name: str, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensor, stream = stream_from(output), self.before.copy
        if not isinstance(tensor, Tensor) or tensor.numel() != stream.numel() or tensor.shape[-1] != stream.shape[-1]:
            return
        inside = any(word in ATTENTION for word in name.split("."))
        # A norm right behind the attention belongs to it: Gemma's and GLM's blocks add what it gives, not what it gets.
        behind = any(
            seen.tensor is args[0]
            for other, seen in self._outputs.items()
            if args and seen is not None and any(word in ATTENTION for word in other.split("."))
        )
        self._outputs[name] = None if name in self._outputs else _Seen(tensor, inside or behind)

    def _leave(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self.after = _Seen(stream_from(output))
        outputs = {name: seen for name, seen in self._outputs.items() if seen is not None}
        self._in_place = any(seen.written_over for seen in (self.before, *outputs.values()))
        if self.after.copy.shape == self.before.copy.shape:
            self.parts = _parts(self.before.copy, self.after.copy, outputs)
        self._outputs.clear()


def _parts(before: Tensor, after: Tensor, outputs: dict[str, _Seen]) -> Parts | str:
    """The two modules of a block that add up to what it adds, one of them its attention; or why there are none."""
    names = {side: _distinct(outputs, side) for side in (True, False)}
    if not names[True]:
        return "it has no attention"
    attention, others = (
        torch.stack([outputs[name].copy.double().flatten() for name in some]) if some else before.new_zeros(0, 0)
        for some in names.values()
    )
    if not len(others):
        return "it has nothing but attention"

    added = (after.double() - before.double()).flatten()
    size = before.double().abs().flatten() + after.double().abs().flatten()
    eps = max(torch.finfo(kind).eps for kind in {before.dtype, *(seen.copy.dtype for seen in outputs.values())})

    def add_up(a: int, m: int, factors: tuple[float, float]) -> bool:
        """Whether they do to rounding: each of the few sums and products is off by eps / 2 of its size at the most."""
        parts = factors[0] * attention[a], factors[1] * others[m]
        return bool(((parts[0] + parts[1] - added).abs() <= 4 * eps * (size + parts[0].abs() + parts[1].abs())).all())

    for factors, a, m in _candidates(attention, others, added):
        for digits in (4, 17):  # a constant of the family's configuration, like 0.22, rather than its measurement
            rounded = float(f"{factors[0]:.{digits}g}"), float(f"{factors[1]:.{digits}g}")
            if add_up(a, m, rounded):
                return Parts(Part(names[True][a], rounded[0]), Part(names[False][m], rounded[1]))
    return "no two of its modules, one of them its attention, add up to what it adds to the residual stream"


def _distinct(outputs: dict[str, _Seen], attention: bool) -> list[str]:
    """The modules on one side whose outputs differ; of equal ones the outermost, and of these the first that ran."""
    kept: list[str] = []
    side = [name for name, seen in outputs.items() if seen.attention is attention]
    for name in sorted(side, key=lambda name: name.count(".")):
        copy = outputs[name].copy
        if not any(torch.equal(copy.flatten(), outputs[other].copy.flatten()) for other in kept):
            kept.append(name)
    return kept


def _candidates(attention: Tensor, others: Tensor, added: Tensor) -> Iterator[tuple[tuple[float, float], int, int]]:
    """The best pair of outputs (module, entry) added as they are, then the best pair with a factor each, by least
    squares of ``added`` (entry,)."""
    aa, mm = attention.square().sum(1)[:, None], others.square().sum(1)[None]
    am, a, m = attention @ others.T, (attention @ added)[:, None], (others @ added)[None]

    def best(loss: Tensor) -> tuple[int, int]:
        place = int(loss.nan_to_num(torch.inf).argmin())
        return place // len(others), place % len(others)

    yield (1.0, 1.0), *best(aa + mm + 2 * (am - a - m))

    determinant = aa * mm - am.square()
    first, second = (a * mm - m * am) / determinant, (m * aa - a * am) / determinant
    usable = (determinant > 1e-9 * aa * mm) & (first > 0) & (second > 0)
    i, j = best(torch.where(usable, -(first * a + second * m), torch.inf))
    if usable[i, j]:
        yield (float(first[i, j]), float(second[i, j])), i, j
