"""Steer a model: change what latents say while it runs. Afterwards everything is as it was.

    x′ = x + decode(z′) − decode(z)      the part of x that the SAE does not explain stays (the default)
    x′ = decode(z′)                      `replace`: the reconstruction takes the place of x

with z the codes of x and z′ the edited ones. Where z′ = z, x stays as it is, bit for bit. For a linear decoder the
first line is x + Σ_j (z′_j − z_j) W_dec[j].
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from strata.lm.model import Hook, LanguageModel, edit, wrapped
from strata.run import door
from strata.run.door import BadInput
from strata.sae.sae import SAE, Codes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

At = Literal["all", "last"] | Sequence[int]
Number = float | Tensor  # a tensor: (context,), one number for each text of the batch
Alter = Callable[[Tensor, Tensor], Tensor]  # rows (row, width) float32, the context of each row (row,) -> new rows


@dataclass(frozen=True)
class Set:
    """Set the latent's code to ``value``; 0 ablates it."""

    value: Number

    def __post_init__(self) -> None:
        _check_number("Set.value", self.value)

    def of(self, code: Tensor, context: Tensor) -> Tensor:
        return torch.zeros_like(code) + _by_row(self.value, context)


@dataclass(frozen=True)
class Scale:
    """Multiply the latent's code by ``factor``. Nothing changes where the latent is not active."""

    factor: Number

    def __post_init__(self) -> None:
        _check_number("Scale.factor", self.factor)

    def of(self, code: Tensor, context: Tensor) -> Tensor:
        return code * _by_row(self.factor, context)


@dataclass(frozen=True)
class Add:
    """Add ``strength`` to the latent's code, active or not: a step along its direction. The code may fall below 0."""

    strength: Number

    def __post_init__(self) -> None:
        _check_number("Add.strength", self.strength)

    def of(self, code: Tensor, context: Tensor) -> Tensor:
        return code + _by_row(self.strength, context)


Change = Set | Scale | Add


def _check_number(name: str, number: Number) -> None:
    """Raise BadInput if ``number`` is neither a finite number nor a tensor of them, one for each text."""
    if not isinstance(number, Tensor):
        door.finite(name, number)
    elif number.dim() > 1 or number.is_complex() or number.dtype == torch.bool or not torch.isfinite(number).all():
        raise BadInput(
            f"{name} is a tensor of {tuple(number.shape)}; it must hold finite numbers, one a text of the batch"
        )


def _by_row(number: Number, context: Tensor) -> Number:
    """Return the number for each row. ``context``: (row,) the text that each row belongs to."""
    return number.to(context.device)[context] if isinstance(number, Tensor) and number.dim() else number


def _number(change: Change) -> Number:
    """Return the number that a change holds."""
    match change:
        case Set(value):
            return value
        case Scale(factor):
            return factor
        case Add(strength):
            return strength


@contextmanager
def steer(
    lm: "LanguageModel | PreTrainedModel",
    sae: SAE,
    changes: Mapping[int, Change],
    layer: int,
    hook: Hook = "resid_post",
    at: At = "all",
    replace: bool = False,
) -> Iterator[None]:
    """Change latents in every pass of ``lm`` inside the block, also in each step of ``generate``.

    ``changes``: maps a latent to what becomes of its code. ``at``: the positions that are changed:

    - "all": all tokens of the prompt, and all that are generated;
    - "last": the last token of each pass that is not padding, and so all that are generated;
    - a list: positions in the prompt, where padding does not count: 0 is the first token (BOS, if there is one), -1
      the last.

    Padding on either side is not changed where an attention mask marks it. Special tokens are changed only if their
    positions are named.

    Raises BadInput at once for a latent, layer, hook or word that does not exist, for a change that is not one, and for
    an SAE of another width than the model; in the pass, for a position that no text of the prompt has.
    """
    door.of_kind("sae", sae, SAE, "it must be an SAE, as strata.sae.disk.load gives")
    door.of_kind("changes", changes, Mapping, "it must be a dict from latents to Set, Scale or Add")
    door.of_kind("replace", replace, bool, "it must be True or False")
    for latent, change in changes.items():
        if not isinstance(latent, Integral) or isinstance(latent, bool) or not 0 <= latent < sae.latents:
            raise BadInput(f"latent {latent!r} is out of range: the SAE has {sae.latents}, 0 to {sae.latents - 1}")
        door.of_kind(f"the change of latent {latent}", change, Change, "it must be Set(…), Scale(…) or Add(…)")

    numbers = [number for change in changes.values() if isinstance(number := _number(change), Tensor) and number.dim()]
    lm = _opened(lm)
    if sae.width != lm.width:
        raise BadInput(f"the SAE reads vectors of {sae.width} numbers, but the model's are of {lm.width}")
    device = lm.device
    sae, ids = sae.to(device), torch.tensor(list(changes), dtype=torch.long, device=device)

    # A step along a direction of a linear decoder does not depend on the codes, which need not be computed then.
    blind = sae.mean is None and not replace and all(isinstance(change, Add) for change in changes.values())

    def alter(x: Tensor, context: Tensor) -> Tensor:
        # (row, changed latent) the codes before, and what each becomes; then what that moves, (row, width).
        codes = None if blind else sae.encode(x)
        before = x.new_zeros(len(x), len(ids)) if codes is None else columns(codes, ids)
        parts = [change.of(before[:, i], context) for i, change in enumerate(changes.values())]
        moved = (torch.stack(parts, 1) - before if parts else before) @ sae.decoder[ids]
        if codes is None or (sae.mean is None and not replace):
            return x + moved

        written = sae.written(codes)
        edited = sae.bent(written + moved)
        # Where nothing moves, both terms of the difference are equal, so that x stays as it is.
        return edited if replace else x + (edited - sae.bent(written))

    with altered(lm, alter, layer, hook, at, {len(number) for number in numbers}):
        yield


@contextmanager
def push(
    lm: "LanguageModel | PreTrainedModel", offset: Tensor, layer: int, hook: Hook = "resid_post", at: At = "all"
) -> Iterator[None]:
    """Add ``offset`` to the activations in every pass of ``lm`` inside the block.

    ``offset``: (width,), or (context, width), one row for each text. ``at``: the positions, as :func:`steer` has them.
    """
    lm = _opened(lm)
    door.of_kind("offset", offset, Tensor, "it must be a tensor of (width,), or (text, width)")
    if offset.dim() not in (1, 2) or offset.shape[-1] != lm.width:
        raise BadInput(
            f"offset is a tensor of {tuple(offset.shape)}; it must be ({lm.width},), the width, or one row a text"
        )
    if not offset.is_floating_point() or not torch.isfinite(offset).all():
        raise BadInput("offset must hold finite numbers")

    def alter(x: Tensor, context: Tensor) -> Tensor:
        return x + (offset if offset.dim() == 1 else offset[context])

    with altered(lm, alter, layer, hook, at, {len(offset)} if offset.dim() == 2 else ()):
        yield


def columns(codes: Codes, latents: Tensor) -> Tensor:
    """Return the codes of some ``latents`` (latent,), no two of them the same, as a dense tensor (row, latent)."""
    place = torch.full((codes.pattern.width,), -1, device=latents.device)
    place[latents] = torch.arange(len(latents), device=latents.device)
    column = place[codes.pattern.latents]  # (entry,) the column of each code, or -1
    wanted = column >= 0
    out = codes.values.new_zeros(codes.pattern.rows, len(latents))
    out[codes.pattern.row_of[wanted], column[wanted]] = codes.values[wanted]
    return out


@contextmanager
def altered(
    lm: "LanguageModel | PreTrainedModel",
    alter: Alter,
    layer: int,
    hook: Hook = "resid_post",
    at: At = "all",
    sizes: Collection[int] = (),
) -> Iterator[None]:
    """Let ``alter`` change the activations at the positions ``at``, and no others, inside the block.

    ``sizes``: the lengths of all values that hold one number for each text; the batch must have as many texts.
    """
    lm = _opened(lm)
    passes = _Passes(lm, _positions(at))

    def change(x: Tensor) -> Tensor:
        if wrong := [size for size in sizes if size != len(x)]:
            raise BadInput(f"{wrong[0]} numbers are given, one a text, but the batch has {len(x)} texts")
        chosen = passes.chosen(x)
        out = x.clone()
        context = chosen.nonzero()[:, 0]
        if len(context):
            out[chosen] = alter(x[chosen].float(), context).to(x.dtype)
        return out

    # A pass begins with the whole model or with its trunk. (OPT's head does not call its trunk, but a part of it.)
    entrances = {id(module): module for module in (lm.model, lm.trunk)}
    handles = [module.register_forward_pre_hook(passes.begin, with_kwargs=True) for module in entrances.values()]
    try:
        with edit(lm, hook, layer, change):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _opened(lm: "LanguageModel | PreTrainedModel") -> LanguageModel:
    """Wrap a model of transformers'; raise BadInput for anything that is not a model."""
    if isinstance(lm, LanguageModel):
        return lm
    if not (isinstance(lm, torch.nn.Module) and hasattr(lm, "config")):
        raise BadInput(
            f"lm is {door.a_thing(lm)}; it must be a model of transformers', or what strata.lm.model.load gives"
        )
    return wrapped(lm)


def _positions(at: At) -> At:
    """Check ``at``: one of its two words, or a list of whole numbers, which may come in a tensor."""
    if isinstance(at, str) or not isinstance(at, Iterable):
        door.choice("at", at, ("all", "last"), " or a list of positions")
        return at
    positions = at.tolist() if isinstance(at, Tensor) else list(at)
    if not isinstance(positions, list):
        raise BadInput("at is a tensor of one number; it must be a list of positions")
    return [door.whole("a position in at", position, -(2**31), 2**31) for position in positions]


class _Passes:
    """Finds the positions to change in the pass under way. A pass behind the prompt's sees only the new tokens."""

    def __init__(self, lm: LanguageModel, at: At) -> None:
        self._at = at
        self._special = _special_ids(lm)
        self._tokens: Tensor | None = None
        self._mask: Tensor | None = None
        self._past = 0

    def begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the tokens, the mask and the number of past positions of a pass; called before the model runs."""
        past, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        self._tokens = args[0] if args else kwargs.get("input_ids")
        self._past = 0 if past is None else int(past.get_seq_length())
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise BadInput("steering needs an attention mask of (context, position); this model is given another kind")
        self._mask = mask

    def chosen(self, x: Tensor) -> Tensor:
        """Say which positions of ``x`` (context, position, width) to change, (context, position) bool."""
        contexts, positions = x.shape[:2]
        real = torch.ones(contexts, self._past + positions, dtype=torch.bool, device=x.device)
        if self._mask is not None:
            real = self._mask[:, : self._past + positions].to(x.device, torch.bool)

        # For each position of this pass: its number among the real tokens of its text, and whether it is chosen. To
        # begin with, all real tokens are.
        number = (real.cumsum(1) - 1)[:, self._past :]
        chosen = real[:, self._past :]

        if not isinstance(self._at, str):
            if self._past:
                return torch.zeros_like(chosen)
            length = real.sum(1, keepdim=True)
            longest = int(length.max())
            if beyond := [at for at in self._at if not -longest <= at < longest]:
                raise BadInput(f"position {beyond[0]} is in no text of the batch: the longest has {longest} tokens")
            named = [number == (at if at >= 0 else length + at) for at in self._at]
            return chosen & torch.stack(named).any(0) if named else torch.zeros_like(chosen)

        if self._at == "last":
            chosen = chosen & (number == number.masked_fill(~chosen, -1).amax(1, keepdim=True))
        if self._tokens is not None and self._tokens.shape == chosen.shape:
            chosen = chosen & ~torch.isin(self._tokens.to(x.device), self._special.to(x.device))
        return chosen


def _special_ids(lm: LanguageModel) -> Tensor:
    """List BOS, EOS and padding as the model's own config names them, because the tokenizer would have to be opened."""
    config, special = lm.model.config.get_text_config(), []
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        special += value if isinstance(value, list) else [] if value is None else [value]
    return torch.tensor(sorted(set(special)), dtype=torch.long)
