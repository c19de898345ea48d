"""A finished sparse autoencoder, which acts on raw activations.

h = (x − b_dec) W_enc + b_enc        f = relu(top-k of h)   or   f = h · 1[h > θ]·1[h > 0]        x̂ = f W_dec + b_dec

In a merged SAE each latent is a group of such f, its parts: f′ = f M, and x̂ = f′ W_dec + b_dec.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from strata.device.machine import fast_dtype
from strata.run import door
from strata.run.door import BadInput
from strata.sae.engine.dispatch import decode, preactivations_at
from strata.sae.engine.nonlinearity import Nonlinearity, bend
from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Block

ROUNDING = 2.0**-8  # the largest relative error of a number rounded to bfloat16
NO_GROUP = -1  # the group of a part that counts towards no latent
FLOOR_ROWS = 256  # rows from which the search for a threshold takes its floor


@dataclass(frozen=True)
class Codes:
    """The active latents of some rows: their ``values`` (entries,), all above 0, and their places, the ``pattern``."""

    values: Tensor
    pattern: Pattern

    def dense(self) -> Tensor:
        """Return the codes as (row, latent), with 0 where a latent is not active.

        Each number takes 4 bytes, so use this for few rows at a time.
        """
        return self.pattern.dense(self.values)

    def active(self) -> Tensor:
        """Return how many latents are active in each row, (row,)."""
        return self.pattern.starts.diff()

    def to(self, device: torch.device) -> "Codes":
        """Return the same codes on another device."""
        pattern = Pattern(self.pattern.starts.to(device), self.pattern.latents.to(device), self.pattern.width)
        return Codes(self.values.to(device), pattern)


@dataclass(frozen=True)
class SAE:
    """A finished SAE. ``encoder`` and ``decoder``: (latent, width); ``b_enc``: (latent,); ``b_dec``: (width,).

    It has either ``k``, for topk, or ``threshold`` (latent,), for jumprelu and the rules that are stored as jumprelu.

    A ``decoder_activation`` g other than the identity acts on the training scale, which has the factor ``scale`` s and
    the ``mean`` μ (width,): x̂ = μ + g(s (f W_dec + b_dec − μ)) / s.

    A merged SAE has ``groups`` and ``shares``. ``groups``, (part,) int64, is the latent that each part counts towards,
    or NO_GROUP. ``shares``, (part,), is how much the part counts: M[p, groups[p]] = shares[p], and the rest of M is 0.
    ``encoder``, ``b_enc``, ``k`` and ``threshold`` then belong to the parts.
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

    def __repr__(self) -> str:
        rule = f"k {self.k}" if self.k is not None else "threshold"
        merged = f", of {self.parts:,} parts" if self.groups is not None else ""
        return f"SAE({self.latents:,} latents{merged}, width {self.width}, {rule})"

    @property
    def latents(self) -> int:
        return len(self.decoder)

    @property
    def parts(self) -> int:
        """The number of rows of the encoder: that of the latents, or more in a merged SAE."""
        return len(self.encoder)

    @property
    def width(self) -> int:
        return len(self.b_dec)

    def to(self, device: torch.device) -> "SAE":
        """Return the same SAE on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors, by name."""
        return {name: value for name, value in self._fields().items() if isinstance(value, Tensor)}

    def settings(self) -> dict[str, Any]:
        """Return the other fields that are set, by name."""
        return {name: value for name, value in self._fields().items() if not isinstance(value, Tensor | None)}

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def directions_read(self) -> Tensor:
        """Return the direction that each latent reads, (latent, width).

        The direction of a group is the sum of its parts' encoder rows, weighted by their shares.
        """
        if self.groups is None or self.shares is None:
            return self.encoder
        inside = self.groups >= 0
        rows = self.encoder[inside] * self.shares[inside, None]
        return torch.zeros_like(self.decoder).index_add_(0, self.groups[inside], rows)

    def preactivations(self, x: Tensor) -> Tensor:
        """Return h, (row, part), in float32."""
        return torch.addmm(self.b_enc, x.float() - self.b_dec, self.encoder.T)

    def encode(self, x: Tensor) -> Codes:
        """Return the codes of raw activations ``x`` (row, width), floats on the SAE's device.

        Raises BadInput for anything else.
        """
        self._check(x)
        codes = self._encode_parts(x)
        if self.groups is None or self.shares is None:
            return codes
        return summed(codes, self.groups, self.shares, self.latents)

    def _check(self, x: Tensor) -> None:
        """Raise BadInput if ``x`` is not what :meth:`encode` takes."""
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  # a notebook may give anything
            raise BadInput(f"x is {door.a_thing(x)}; it must be a tensor (row, {self.width}), as torch.as_tensor makes")
        if x.dim() != 2 or x.shape[1] != self.width:
            raise BadInput(f"x is a tensor of {tuple(x.shape)}; this SAE reads (row, {self.width})")
        if not x.is_floating_point():
            raise BadInput(f"x is a tensor of {str(x.dtype).removeprefix('torch.')}; activations are floats")
        if x.device != self.b_dec.device:
            raise BadInput(f"x is on {x.device}, but the SAE on {self.b_dec.device}; move one of them by .to(device)")
        # The least and the largest number are NaN if any number is. This costs much less than isfinite of every number.
        if x.numel() and not torch.isfinite(torch.stack(torch.aminmax(x.detach()))).all():
            raise BadInput("x holds NaN or infinity")

    def _encode_parts(self, x: Tensor) -> Codes:
        """Return the codes of the parts, which are the latents unless the SAE is merged."""
        if self.k is not None:  # the k largest of each row, in the order of their latents
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
            # Find a few candidates by a fast upper bound, and compute the exact h of these alone.
            pattern = _above(self._upper_bound(x), threshold * (1 - 2 * ROUNDING))
            values = preactivations_at(x.float() - self.b_dec, self.encoder, self.b_enc, pattern)
            active = values > threshold[pattern.latents]
            return Codes(values[active], pattern.keep(active))

        h = self.preactivations(x)
        pattern = _above(h, threshold)
        return Codes(h[pattern.row_of, pattern.latents], pattern)

    def _upper_bound(self, x: Tensor) -> Tensor:
        """Return a number a little above h for each entry, (row, part) in bfloat16, three times as fast as h itself.

        Rounding x and w to bfloat16 moves x · w by at most 2.1 ε ‖x‖ ‖w‖, with ε = 2⁻⁸ (by Cauchy and Schwarz). One
        more column of the product adds that. The sum is rounded, too: the caller must allow for it.
        """
        centred = x.float() - self.b_dec
        margin = 2.2 * ROUNDING * centred.norm(dim=1, keepdim=True)
        bias, weights = self._rounded
        return torch.addmm(bias, torch.cat([centred, margin], dim=1).bfloat16(), weights.T)

    @cached_property
    def _rounded(self) -> tuple[Tensor, Tensor]:
        """The bias (part,) and the weights (part, width + 1) of :meth:`_upper_bound`, in bfloat16.

        The bias is raised by what rounding can take from it. The last column of the weights holds their norms.
        """
        weights = torch.cat([self.encoder, self.encoder.norm(dim=1, keepdim=True) * (1 + 2 * ROUNDING)], dim=1)
        return (self.b_enc + 2 * ROUNDING * self.b_enc.abs()).bfloat16(), weights.bfloat16()

    def decode(self, codes: Codes) -> Tensor:
        """Return the reconstruction, (row, width). BadInput for codes of an SAE with another number of latents."""
        if codes.pattern.width != self.latents:
            raise BadInput(f"the codes are of {codes.pattern.width} latents, but this SAE has {self.latents}")
        return self.bent(self.written(codes))

    def written(self, codes: Codes) -> Tensor:
        """Return f W_dec + b_dec, (row, width): the reconstruction before the decoder's activation (:meth:`bent`)."""
        return decode(codes.values, self.decoder, codes.pattern) + self.b_dec

    def bent(self, written: Tensor) -> Tensor:
        """Apply the decoder's activation, if it has one, to the ``written`` rows (row, width)."""
        if self.mean is None:
            return written
        return self.mean + bend(self.decoder_activation, self.scale * (written - self.mean)) / self.scale

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction (row, width) of ``x`` and the number of active latents in each row, (row,)."""
        codes = self.encode(x)
        return self.decode(codes), codes.active()


def summed(codes: Codes, groups: Tensor, shares: Tensor, latents: int) -> Codes:
    """Return f M for the ``codes`` f of the parts, with M as in :class:`SAE`: of each group, Σ share × code.

    ``groups`` and ``shares``: (part,). A part of NO_GROUP, or of share 0, counts towards nothing. Parts are added in
    rising order.
    """
    # Keep the entries of parts that count towards a latent.
    counts = (groups >= 0) & (shares > 0)
    inside = counts[codes.pattern.latents]
    pattern, values = codes.pattern.keep(inside), codes.values[inside]

    # Sort the entries by row and latent, and add up those of one row and latent.
    key, order = (pattern.row_of * latents + groups[pattern.latents]).sort(stable=True)
    key, place = key.unique_consecutive(return_inverse=True)
    values = (values * shares[pattern.latents])[order]

    active = torch.bincount(key // latents, minlength=pattern.rows)
    starts = torch.cat([active.new_zeros(1), active.cumsum(0)])
    return Codes(values.new_zeros(len(key)).index_add(0, place, values), Pattern(starts, key % latents, latents))


def _above(h: Tensor, low: Tensor) -> Pattern:
    """Return the entries of ``h`` (row, part) above ``low`` (part,)."""
    return Block(h, torch.zeros_like(low)).above(low)


def threshold_for(sae: SAE, blocks: Callable[[], Iterable[Tensor]], per_row: float) -> float:
    """Return the one threshold at which ``sae`` has ``per_row`` active latents a row over ``blocks()``.

    ``blocks()``: raw activations, (row, width) each. The threshold is the exact quantile of all positive h. To save
    memory, only h above a floor are kept. The floor leaves 1.5 × ``per_row`` entries on each of the first rows; if that
    proves too few over all rows, all positive h are kept.
    """
    first_rows = next(iter(blocks()))[:FLOOR_ROWS]
    h = sae.preactivations(first_rows).flatten()
    floor = float(h.topk(min(len(h), max(round(1.5 * per_row * len(first_rows)), 1))).values[-1].clamp(min=0))

    for low in (floor, 0.0):
        candidate = replace(sae, k=None, threshold=torch.full_like(sae.b_enc, low))
        values_and_rows = [(candidate.encode(x).values, len(x)) for x in blocks()]
        values = torch.cat([values for values, _ in values_and_rows])
        wanted = round(per_row * sum(rows for _, rows in values_and_rows))

        # Halfway between the last value that is to be active and the next smaller one.
        if len(values) > wanted:
            largest = values.topk(wanted + 1, sorted=False).values
            return float(largest.topk(2, largest=False).values.double().mean())
    return 0.0
