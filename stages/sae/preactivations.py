"""h = y W_enc + b_enc of a batch, which is never there as a whole.

Latents are chosen by a cheap product; what may be chosen is then computed exactly. On CPUs that multiply bytes the
product is of 8-bit numbers, at twice the speed of bfloat16. Rounding a row to 8 bits is coarse where a few columns are
large, as they are in residual streams, so that columns are divided by ``balance`` and those of W_enc multiplied by it
(Xiao et al. 2023, "SmoothQuant", eq. 4, α = 1/2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stages.sae import cpu, vnni
from stages.sae.kernels import Pattern, fast_dtype, joined, pattern_of, sample

ROWS = 1024  # of h at a time on a CPU: fewer make the product slower
ENTRIES = 2**26  # of h at a time elsewhere
SMALL = 2**17  # weights of an encoder for which a float32 product costs nothing


def product_dtype(device: torch.device, weights: int) -> torch.dtype:
    """The numbers that the cheap product of an encoder of so many weights is made of."""
    if weights < SMALL:
        return torch.float32
    return torch.int8 if device.type == "cpu" and vnni.there() else fast_dtype(device)


@dataclass(frozen=True)
class Block:
    """h ≈ ``product`` (row, latent) + ``bias`` (latent,)."""

    product: Tensor
    bias: Tensor

    def above(self, low: Tensor) -> Pattern:
        """The entries above ``low``, () or (latent,)."""
        if self.product.device.type == "cpu":
            return _pattern(cpu.above(self._bits(), self.bias.numpy(), _each(low, self.bias)), self.bias)
        return pattern_of(self._h() > low.float())

    def strongest(self, least: int) -> Pattern:
        """At least the ``least`` largest positive entries of each row; elsewhere than on a CPU exactly so many."""
        if self.product.device.type == "cpu":
            return _pattern(cpu.strongest(self._bits(), self.bias.numpy(), least), self.bias)
        latents = self._h().topk(min(least, len(self.bias)), dim=1).indices.sort(dim=1).values
        starts = torch.arange(0, latents.numel() + 1, latents.shape[1], device=latents.device)
        return Pattern(starts, latents.flatten(), len(self.bias))

    def _h(self) -> Tensor:
        return self.product.float() + self.bias

    def _bits(self) -> Any:
        return self.product.view(torch.int16 if self.product.dtype is torch.bfloat16 else torch.int32).numpy()


class Bytes:
    """The same of all rows, from 8-bit numbers."""

    def __init__(self, y: Tensor, encoder: Tensor, bias: Tensor, balance: Tensor) -> None:
        self.bias = bias
        rows = vnni.of_rows(y.contiguous().numpy(), balance.reciprocal().numpy())
        panels = vnni.panels(*encoder.shape)
        sums = vnni.of_latents(encoder.contiguous().numpy(), balance.numpy(), panels)
        self._numbers = (len(y), len(bias), *rows, panels, *sums, self._padded(bias, 0.0))

    def above(self, low: Tensor) -> Pattern:
        """The entries above ``low``, () or (latent,)."""
        return _pattern(vnni.above(*self._numbers, self._padded(low, torch.inf)), self.bias)

    def strongest(self, least: int) -> Pattern:
        """At least the ``least`` largest positive entries of each row."""
        return _pattern(vnni.strongest(*self._numbers, least), self.bias)

    def _padded(self, values: Tensor, value: float) -> Any:
        each = values.float().expand(len(self.bias))
        return torch.nn.functional.pad(each, (0, -len(each) % vnni.PANEL), value=value).contiguous().numpy()


def _each(low: Tensor, bias: Tensor) -> Any:
    return low.float().expand(len(bias)).contiguous().numpy()


def _pattern(csr: cpu.Csr, bias: Tensor) -> Pattern:
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
            return candidates(self._bytes)
        rows = ROWS if self.y.device.type == "cpu" else max(1, ENTRIES // self.latents)
        weights = self.encoder.to(self.dtype).T
        parts = self.y.to(self.dtype).split(rows)
        return joined([candidates(Block(part @ weights, self.bias)) for part in parts])

    def at(self, pattern: Pattern) -> Tensor:
        """(entries,) the exact h."""
        return sample(self.y, self.encoder, pattern, self.bias)

    @cached_property
    def _bytes(self) -> Bytes:
        return Bytes(self.y, self.encoder, self.bias, self.balance)
