"""A finished sparse autoencoder, acting on raw activations.

h = (x − b_dec) W_enc + b_enc        f = relu(top-k of h)   or   f = h · 1[h > θ]·1[h > 0]        x̂ = f W_dec + b_dec

In a merged one the latents are groups of such f, its parts: f′ = f M, and x̂ = f′ W_dec + b_dec.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from strata.run import calls
from strata.run.door import BadInput
from strata.sae.engine.dispatch import decode, fast_dtype, sampled
from strata.sae.engine.nonlinearity import Nonlinearity, bend
from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Block

ROUNDING = 2.0**-8  # the largest relative error of a number rounded to bfloat16
NO_GROUP = -1
FLOOR_ROWS = 256  # rows that a threshold's search takes its floor from


@dataclass(frozen=True)
class Codes:
    """The active latents of some rows: their values, (entries,), all above 0, and where they stand."""

    values: Tensor
    pattern: Pattern

    def dense(self) -> Tensor:
        """(row, latent), with 0 where a latent is not active: 4 bytes each, so for few rows at a time."""
        return self.pattern.dense(self.values)

    def active(self) -> Tensor:
        """(rows,) how many latents each row has."""
        return self.pattern.starts.diff()

    def to(self, device: torch.device) -> "Codes":
        """The same on another device."""
        pattern = Pattern(self.pattern.starts.to(device), self.pattern.latents.to(device), self.pattern.width)
        return Codes(self.values.to(device), pattern)


@dataclass(frozen=True)
class SAE:
    """``encoder`` and ``decoder``: (latent, width); ``b_enc``: (latent,); ``b_dec``: (width,).

    Either ``k``, for topk, or ``threshold`` (latent,), for jumprelu and what is stored as such.

    A ``decoder_activation`` g other than the identity acts on the training scale, ``scale`` s and ``mean`` μ (width,):
    x̂ = μ + g(s (f W_dec + b_dec − μ)) / s.

    A merged SAE has ``groups``, (part,) int64: the latent that each part counts towards, or NO_GROUP; and ``shares``,
    (part,): how much, so that M[p, groups[p]] = shares[p] and the rest of M is 0. ``encoder``, ``b_enc``, ``k`` and
    ``threshold`` are then of the parts.
    """

    encoder: Tensor
    b_enc: Tensor
    decoder: Tensor
    b_dec: Tensor
    k: int | None = None
    threshold: Tensor | None = None
    decoder_activation: Nonlinearity = "identity"
    scale: float = 1.0
    mean: Tensor | None = None
    groups: Tensor | None = None
    shares: Tensor | None = None

    @property
    def latents(self) -> int:
        return len(self.decoder)

    @property
    def parts(self) -> int:
        """Rows of the encoder: as many as latents, or more in a merged SAE."""
        return len(self.encoder)

    @property
    def width(self) -> int:
        return len(self.b_dec)

    def to(self, device: torch.device) -> "SAE":
        """The same on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by field."""
        return {name: value for name, value in self._fields().items() if isinstance(value, Tensor)}

    def settings(self) -> dict[str, Any]:
        """What else it is made of."""
        return {name: value for name, value in self._fields().items() if not isinstance(value, Tensor | None)}

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def directions_read(self) -> Tensor:
        """(latent, width): what each latent reads; of a group, M's sum of its parts' encoder rows."""
        if self.groups is None or self.shares is None:
            return self.encoder
        inside = self.groups >= 0
        rows = self.encoder[inside] * self.shares[inside, None]
        return torch.zeros_like(self.decoder).index_add_(0, self.groups[inside], rows)

    def preactivations(self, x: Tensor) -> Tensor:
        """h, (row, part), in float32."""
        return torch.addmm(self.b_enc, x.float() - self.b_dec, self.encoder.T)

    def encode(self, x: Tensor) -> Codes:
        """Codes of raw activations ``x`` (row, width), floats on the SAE's device. BadInput for anything else."""
        self._check(x)
        codes = self._encode_parts(x)
        if self.groups is None or self.shares is None:
            return codes
        return summed(codes, self.groups, self.shares, self.latents)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  # a notebook may give anything
            raise BadInput(
                f"x is {calls.a_thing(x)}; it must be a tensor (row, {self.width}), as torch.as_tensor makes"
            )
        if x.dim() != 2 or x.shape[1] != self.width:
            raise BadInput(f"x is a tensor of {tuple(x.shape)}; this SAE reads (row, {self.width})")
        if not x.is_floating_point():
            raise BadInput(f"x is a tensor of {str(x.dtype).removeprefix('torch.')}; activations are floats")
        if x.device != self.b_dec.device:
            raise BadInput(f"x is on {x.device}, but the SAE on {self.b_dec.device}; move one of them by .to(device)")
        # Both ends are NaN where one number is; several times cheaper than isfinite of every number.
        if x.numel() and not torch.isfinite(torch.stack(torch.aminmax(x.detach()))).all():
            raise BadInput("x holds NaN or infinity")

    def _encode_parts(self, x: Tensor) -> Codes:
        if self.k is not None:
            h = self.preactivations(x)
            values, latents = h.topk(self.k, dim=1)
            latents, order = latents.sort(dim=1)
            values = values.gather(1, order).flatten()
            starts = torch.arange(0, values.numel() + 1, self.k, device=h.device)
            pattern = Pattern(starts, latents.flatten(), self.parts)
            return Codes(values[values > 0], pattern.keep(values > 0))
        assert self.threshold is not None
        threshold = self.threshold.clamp(min=0)
        if fast_dtype(x.device) is torch.bfloat16:
            pattern = _above(self._upper_bound(x), threshold * (1 - 2 * ROUNDING))
            values = sampled(x.float() - self.b_dec, self.encoder, self.b_enc, pattern)
            active = values > threshold[pattern.latents]
            return Codes(values[active], pattern.keep(active))
        h = self.preactivations(x)
        pattern = _above(h, threshold)
        return Codes(h[pattern.row_of, pattern.latents], pattern)

    def _upper_bound(self, x: Tensor) -> Tensor:
        """At least h, and little more, (row, part) in bfloat16: three times as fast as h itself.

        Rounding x and w moves x · w by at most 2.1 ε ‖x‖ ‖w‖, with ε = 2⁻⁸ (Cauchy and Schwarz); that is added as one
        more column of the product. The rounding of the sum is left to the caller.
        """
        centred = x.float() - self.b_dec
        margin = 2.2 * ROUNDING * centred.norm(dim=1, keepdim=True)
        bias, weights = self._rounded
        return torch.addmm(bias, torch.cat([centred, margin], dim=1).bfloat16(), weights.T)

    @cached_property
    def _rounded(self) -> tuple[Tensor, Tensor]:
        weights = torch.cat([self.encoder, self.encoder.norm(dim=1, keepdim=True) * (1 + 2 * ROUNDING)], dim=1)
        return (self.b_enc + 2 * ROUNDING * self.b_enc.abs()).bfloat16(), weights.bfloat16()

    def decode(self, codes: Codes) -> Tensor:
        """Reconstruction, (row, width). Raises BadInput for codes of an SAE with another number of latents."""
        if codes.pattern.width != self.latents:
            raise BadInput(f"the codes are of {codes.pattern.width} latents, but this SAE has {self.latents}")
        return self.bent(self.written(codes))

    def written(self, codes: Codes) -> Tensor:
        """z W_dec + b_dec, (row, width): the reconstruction, but for what the decoder ends in."""
        return decode(codes.values, self.decoder, codes.pattern) + self.b_dec

    def bent(self, written: Tensor) -> Tensor:
        """Put what is :meth:`written` through the function that the decoder ends in, if it ends in one."""
        if self.mean is None:
            return written
        return self.mean + bend(self.decoder_activation, self.scale * (written - self.mean)) / self.scale

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (row, width) and the number of active latents (row,)."""
        codes = self.encode(x)
        return self.decode(codes), codes.active()


def summed(codes: Codes, groups: Tensor, shares: Tensor, latents: int) -> Codes:
    """f M, for ``codes`` of the parts, with M as :class:`SAE` has it: of each group Σ share × code.

    A part of NO_GROUP, or of share 0, counts towards nothing. Parts are added in rising order.
    """
    counts = (groups >= 0) & (shares > 0)
    inside = counts[codes.pattern.latents]
    pattern, values = codes.pattern.keep(inside), codes.values[inside]
    key, order = (pattern.row_of * latents + groups[pattern.latents]).sort(stable=True)
    key, place = key.unique_consecutive(return_inverse=True)
    values = (values * shares[pattern.latents])[order]
    active = torch.bincount(key // latents, minlength=pattern.rows)
    starts = torch.cat([active.new_zeros(1), active.cumsum(0)])
    return Codes(values.new_zeros(len(key)).index_add(0, place, values), Pattern(starts, key % latents, latents))


def _above(h: Tensor, low: Tensor) -> Pattern:
    return Block(h, torch.zeros_like(low)).above(low)


def threshold_for(sae: SAE, blocks: Callable[[], Iterable[Tensor]], per_row: float) -> float:
    """The one threshold at which ``sae`` has ``per_row`` active latents a row over ``blocks()`` of raw activations.

    It is the exact quantile of all positive h. Only those above a floor are looked at, which is where the first rows
    have half more than their share; should all rows have less than their share there, all positive ones are.
    """
    first = next(iter(blocks()))[:FLOOR_ROWS]
    h = sae.preactivations(first).flatten()
    floor = float(h.topk(min(len(h), max(round(1.5 * per_row * len(first)), 1))).values[-1].clamp(min=0))
    for low in (floor, 0.0):
        part = replace(sae, k=None, threshold=torch.full_like(sae.b_enc, low))
        found = [(part.encode(x).values, len(x)) for x in blocks()]
        values, wanted = torch.cat([values for values, _ in found]), round(per_row * sum(rows for _, rows in found))
        if len(values) > wanted:
            largest = values.topk(wanted + 1, sorted=False).values
            return float(largest.topk(2, largest=False).values.double().mean())
    return 0.0
