"""h = y W_enc + b_enc of a batch, which is never there as a whole.

Latents are chosen by a cheap product; what may be chosen is then computed exactly. On CPUs with AVX-512 VNNI, but no
AMX, it is of 8-bit numbers, at more than twice the speed of bfloat16. Rounding a row to 8 bits is coarse where a few
columns are large, as they are in residual streams, so that columns are divided by ``balance`` and those of W_enc
multiplied by it (Xiao et al. 2023, "SmoothQuant", eq. 4, α = 1/2).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from strata.sae.engine import choosing, vnni
from strata.sae.engine.dispatch import fast_dtype, sample
from strata.sae.engine.pattern import Pattern, joined, pattern_of

ROWS = 1024  # of h at a time on a CPU: fewer make the product slower
ENTRIES = 2**26  # of h at a time elsewhere, and of what bytes are chosen from
SMALL = 2**17  # weights of an encoder for which a float32 product costs nothing


def product_dtype(device: torch.device, weights: int) -> torch.dtype:
    """The numbers that the cheap product of an encoder of so many weights is made of."""
    if weights < SMALL:
        return torch.float32
    return torch.int8 if device.type == "cpu" and vnni.best() else fast_dtype(device)


@dataclass(frozen=True)
class Block:
    """h ≈ ``product`` (row, latent) + ``bias`` (latent,)."""

    product: Tensor
    bias: Tensor

    def above(self, low: Tensor) -> Pattern:
        """The entries above ``low``, () or (latent,)."""
        if self.product.device.type == "cpu":
            return _pattern(choosing.above(self._bits(), self.bias.numpy(), _each(low, self.bias).numpy()), self.bias)
        return pattern_of(self._h() > low.float())

    def strongest(self, least: int) -> Pattern:
        """At least the ``least`` largest positive entries of each row; elsewhere than on a CPU exactly so many."""
        if self.product.device.type == "cpu":
            return _pattern(choosing.strongest(self._bits(), self.bias.numpy(), least), self.bias)
        latents = self._h().topk(min(least, len(self.bias)), dim=1).indices.sort(dim=1).values
        starts = torch.arange(0, latents.numel() + 1, latents.shape[1], device=latents.device)
        return Pattern(starts, latents.flatten(), len(self.bias))

    def _h(self) -> Tensor:
        return self.product.float() + self.bias

    def _bits(self) -> Any:
        return self.product.view(torch.int16 if self.product.dtype is torch.bfloat16 else torch.int32).numpy()


@dataclass(frozen=True)
class Bytes:
    """h of some rows from 8-bit numbers, which answers as a Block does. ``padded``: the ``bias`` of whole panels."""

    rows: tuple[Any, Any]
    encoder: tuple[Any, Any, Any]
    padded: Any
    bias: Tensor
    number: int

    @classmethod
    def of(cls, y: Tensor, encoder: Tensor, bias: Tensor, balance: Tensor) -> "Bytes":
        """h of all rows of ``y`` (row, width)."""
        rows = vnni.of_rows(y.contiguous().numpy(), balance.reciprocal().numpy())
        panels = vnni.room(*encoder.shape)
        sums = vnni.of_latents(encoder.contiguous().numpy(), balance.numpy(), panels)
        return cls(rows, (panels, *sums), _panels(bias, bias, 0.0), bias, len(y))

    def split(self, rows: int) -> "list[Bytes]":
        """Parts of so many rows, a multiple of a tile's."""
        q, scales = self.rows
        starts = range(0, self.number, rows)
        parts = [((q[i : i + rows], scales[i : i + rows]), min(rows, self.number - i)) for i in starts]
        return [replace(self, rows=part, number=number) for part, number in parts]

    def above(self, low: Tensor) -> Pattern:
        """The entries above ``low``, () or (latent,)."""
        return self._pattern(vnni.above, _panels(low, self.bias, torch.inf))

    def strongest(self, least: int) -> Pattern:
        """At least the ``least`` largest positive entries of each row."""
        return self._pattern(vnni.strongest, least)

    def _pattern(self, find: Callable[..., choosing.Csr], what: Any) -> Pattern:
        csr = find(self.number, len(self.bias), *self.rows, *self.encoder, self.padded, what)
        return _pattern(csr, self.bias)


def _each(low: Tensor, bias: Tensor) -> Tensor:
    return low.float().expand(len(bias)).contiguous()


def _panels(values: Tensor, bias: Tensor, value: float) -> Any:
    """One of ``values``, () or (latent,), for each latent, and ``value`` for those that fill the last panel."""
    return torch.nn.functional.pad(_each(values, bias), (0, -len(bias) % vnni.PANEL), value=value).numpy()


def _pattern(csr: choosing.Csr, bias: Tensor) -> Pattern:
    starts, latents = map(torch.from_numpy, csr)
    return Pattern(starts, latents, len(bias))


class Preactivations:
    """Those of ``y`` (row, width), without gradient; ``encoder`` (latent, width), ``bias`` (latent,)."""

    def __init__(self, y: Tensor, encoder: Tensor, bias: Tensor, balance: Tensor) -> None:
        self.y, self.encoder, self.bias, self.balance = y, encoder.detach(), bias.detach(), balance
        self.rows, self.latents = len(y), len(encoder)
        self.dtype = product_dtype(y.device, encoder.numel())

    def choose(self, candidates: Callable[[Block | Bytes], Pattern]) -> Pattern:
        """The ``candidates`` of all rows."""
        if self.dtype is torch.int8:
            rows = max(1, ENTRIES // self.latents // vnni.BLOCK) * vnni.BLOCK
            return joined([candidates(part) for part in self._bytes.split(rows)])
        rows = ROWS if self.y.device.type == "cpu" else max(1, ENTRIES // self.latents)
        weights = self.encoder.to(self.dtype).T
        parts = self.y.to(self.dtype).split(rows)
        return joined([candidates(Block(part @ weights, self.bias)) for part in parts])

    def at(self, pattern: Pattern) -> Tensor:
        """(entries,) the exact h."""
        return sample(self.y, self.encoder, pattern, self.bias)

    @cached_property
    def _bytes(self) -> Bytes:
        return Bytes.of(self.y, self.encoder, self.bias, self.balance)
