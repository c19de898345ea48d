"""Interventions: what a latent says is changed while the model runs, and everything is as it was afterwards.

    x′ = x + decode(z′) − decode(z)      what the SAE does not explain of x stays in it (the default)
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
from strata.run import calls
from strata.run.door import BadInput
from strata.sae.sae import SAE, Codes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

At = Literal["all", "last"] | Sequence[int]
Number = float | Tensor  # a tensor: (context,), one for each text of the batch
Alter = Callable[[Tensor, Tensor], Tensor]  # rows (row, width) float32, the context of each (row,) -> rows


@dataclass(frozen=True)
class Set:
    """The latent's code becomes ``value``; 0 ablates it."""

    value: Number

    def __post_init__(self) -> None:
        _check_number("Set.value", self.value)

    def of(self, code: Tensor, context: Tensor) -> Tensor:
        return torch.zeros_like(code) + _each(self.value, context)


@dataclass(frozen=True)
class Scale:
    """Its code is multiplied by ``factor``: it moves only where the latent is active."""

    factor: Number

    def __post_init__(self) -> None:
        _check_number("Scale.factor", self.factor)

    def of(self, code: Tensor, context: Tensor) -> Tensor:
        return code * _each(self.factor, context)


@dataclass(frozen=True)
class Add:
    """``strength`` is added to its code, active or not, below 0 too: a step along its direction."""

    strength: Number

    def __post_init__(self) -> None:
        _check_number("Add.strength", self.strength)

    def of(self, code: Tensor, context: Tensor) -> Tensor:
        return code + _each(self.strength, context)


Change = Set | Scale | Add


def _check_number(name: str, number: Number) -> None:
    """Refuse what is no finite number, and no list of them in a tensor."""
    if not isinstance(number, Tensor):
        calls.finite(name, number)
    elif number.dim() > 1 or number.is_complex() or number.dtype == torch.bool or not torch.isfinite(number).all():
        raise BadInput(
            f"{name} is a tensor of {tuple(number.shape)}; it must hold finite numbers, one a text of the batch"
        )


def _each(number: Number, context: Tensor) -> Number:
    """The number that counts for each row; ``context``: (row,) the text that the row is of."""
    return number.to(context.device)[context] if isinstance(number, Tensor) and number.dim() else number


def _number(change: Change) -> Number:
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
    """Inside the block, every pass of ``lm`` (also each step of ``generate``) runs with latents changed.

    ``changes``: latent -> what becomes of its code. ``at``: all tokens of the prompt and all that are generated; the
    last real token of each pass, so again all that are generated; or positions in the prompt, counted from its first
    real token, or, below 0, back from its last. Padding on either side is left alone where an attention mask marks it,
    and so are special tokens unless their positions are named.

    Raises BadInput, here, for a latent, layer, hook or word that there is not, a change that is none and an SAE of
    another width than the model; and, in the pass, for a position that no text of the prompt has.
    """
    calls.of_kind("sae", sae, SAE, "it must be an SAE, as strata.sae.disk.load gives")
    calls.of_kind("changes", changes, Mapping, "it must be a dict from latents to Set, Scale or Add")
    calls.of_kind("replace", replace, bool, "it must be True or False")
    for latent, change in changes.items():
        if not isinstance(latent, Integral) or isinstance(latent, bool) or not 0 <= latent < sae.latents:
            raise BadInput(f"latent {latent!r} is out of range: the SAE has {sae.latents}, 0 to {sae.latents - 1}")
        calls.of_kind(f"the change of latent {latent}", change, Change, "it must be Set(…), Scale(…) or Add(…)")
    numbers = [number for change in changes.values() if isinstance(number := _number(change), Tensor) and number.dim()]
    lm = _opened(lm)
    if sae.width != lm.width:
        raise BadInput(f"the SAE reads vectors of {sae.width} numbers, but the model's are of {lm.width}")
    device = lm.device
    sae, ids = sae.to(device), torch.tensor(list(changes), dtype=torch.long, device=device)
    # A step along a direction of a linear decoder does not depend on the codes.
    blind = sae.mean is None and not replace and all(isinstance(change, Add) for change in changes.values())

    def alter(x: Tensor, context: Tensor) -> Tensor:
        codes = None if blind else sae.encode(x)
        before = x.new_zeros(len(x), len(ids)) if codes is None else columns(codes, ids)
        parts = [change.of(before[:, i], context) for i, change in enumerate(changes.values())]
        moved = (torch.stack(parts, 1) - before if parts else before) @ sae.decoder[ids]
        if codes is None or (sae.mean is None and not replace):
            return x + moved
        written = sae.written(codes)
        edited = sae.bent(written + moved)
        # Where nothing moves the two are the same tensor, and their difference 0.
        return edited if replace else x + (edited - sae.bent(written))

    with altered(lm, alter, layer, hook, at, {len(number) for number in numbers}):
        yield


@contextmanager
def push(
    lm: "LanguageModel | PreTrainedModel", offset: Tensor, layer: int, hook: Hook = "resid_post", at: At = "all"
) -> Iterator[None]:
    """The same with ``offset`` added to the activations: (width,), or (context, width), one for each text."""
    lm = _opened(lm)
    calls.of_kind("offset", offset, Tensor, "it must be a tensor of (width,), or (text, width)")
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
    """(row, latent) the codes of some ``latents`` (latent,), which differ, zeros among them."""
    place = torch.full((codes.pattern.width,), -1, device=latents.device)
    place[latents] = torch.arange(len(latents), device=latents.device)
    where = place[codes.pattern.latents]
    found = where >= 0
    out = codes.values.new_zeros(codes.pattern.rows, len(latents))
    out[codes.pattern.row_of[found], where[found]] = codes.values[found]
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
    """Inside the block, ``alter`` changes the activations at the positions ``at``, and no others. ``sizes``: of what
    has one number a text; the batch must have as many texts."""
    lm = _opened(lm)
    now = _Passes(lm, _positions(at))

    def change(x: Tensor) -> Tensor:
        if wrong := [size for size in sizes if size != len(x)]:
            raise BadInput(f"{wrong[0]} numbers are given, one a text, but the batch has {len(x)} texts")
        chosen = now.chosen(x)
        out = x.clone()
        context = chosen.nonzero()[:, 0]
        if len(context):
            out[chosen] = alter(x[chosen].float(), context).to(x.dtype)
        return out

    # A pass begins with the whole model or with its trunk; OPT's head calls neither its trunk, but what lies in it.
    entrances = {id(module): module for module in (lm.model, lm.trunk)}
    handles = [module.register_forward_pre_hook(now.begin, with_kwargs=True) for module in entrances.values()]
    try:
        with edit(lm, hook, layer, change):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _opened(lm: "LanguageModel | PreTrainedModel") -> LanguageModel:
    if isinstance(lm, LanguageModel):
        return lm
    if not (isinstance(lm, torch.nn.Module) and hasattr(lm, "config")):
        raise BadInput(
            f"lm is {calls.a_thing(lm)}; it must be a model of transformers', or what strata.lm.model.load gives"
        )
    return wrapped(lm)


def _positions(at: At) -> At:
    """``at`` as one of its two words, or a list of whole numbers."""
    if isinstance(at, str) or not isinstance(at, Iterable):
        calls.choice("at", at, ("all", "last"), " or a list of positions")
        return at
    positions = at.tolist() if isinstance(at, Tensor) else list(at)
    if not isinstance(positions, list):
        raise BadInput("at is a tensor of one number; it must be a list of positions")
    return [calls.whole("a position in at", position, -(2**31), 2**31) for position in positions]


class _Passes:
    """Which positions of the pass under way are meant; a pass after the prompt's sees only what is new."""

    def __init__(self, lm: LanguageModel, at: At) -> None:
        self._at = at
        self._special = _special_ids(lm)
        self._tokens: Tensor | None = None
        self._mask: Tensor | None = None
        self._past = 0

    def begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called with what the model is called with."""
        past, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        self._tokens = args[0] if args else kwargs.get("input_ids")
        self._past = 0 if past is None else int(past.get_seq_length())
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise BadInput("steering needs an attention mask of (context, position); this model is given another kind")
        self._mask = mask

    def chosen(self, x: Tensor) -> Tensor:
        """(context, position) bool for activations ``x`` (context, position, width)."""
        contexts, positions = x.shape[:2]
        real = torch.ones(contexts, self._past + positions, dtype=torch.bool, device=x.device)
        if self._mask is not None:
            real = self._mask[:, : self._past + positions].to(x.device, torch.bool)
        number = (real.cumsum(1) - 1)[:, self._past :]  # of each token among the real ones of its text
        here = real[:, self._past :]
        if not isinstance(self._at, str):
            if self._past:
                return torch.zeros_like(here)
            length = real.sum(1, keepdim=True)
            longest = int(length.max())
            if beyond := [at for at in self._at if not -longest <= at < longest]:
                raise BadInput(f"position {beyond[0]} is in no text of the batch: the longest has {longest} tokens")
            named = [number == (at if at >= 0 else length + at) for at in self._at]
            return here & torch.stack(named).any(0) if named else torch.zeros_like(here)
        if self._at == "last":
            here = here & (number == number.masked_fill(~here, -1).amax(1, keepdim=True))
        if self._tokens is not None and self._tokens.shape == here.shape:
            here = here & ~torch.isin(self._tokens.to(x.device), self._special.to(x.device))
        return here


def _special_ids(lm: LanguageModel) -> Tensor:
    """BOS, EOS and padding as the model's own config names them: asking the tokenizer would open it."""
    config, found = lm.model.config.get_text_config(), []
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        found += value if isinstance(value, list) else [] if value is None else [value]
    return torch.tensor(sorted(set(found)), dtype=torch.long)
