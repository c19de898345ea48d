"""Pre-activations h = y W_enc + b_enc of a batch, which are never in memory as a whole.

A cheap product chooses candidates among the latents; then h is computed exactly for the candidates alone.

On CPUs with AVX-512 VNNI, but without AMX, the cheap product multiplies 8-bit numbers, at more than twice the speed of
bfloat16. Rounding a row to 8 bits is coarse where a few columns are much larger than the others, as in residual
streams. So columns of y are divided by ``balance``, and those of W_enc are multiplied by it (Xiao et al. 2023,
"SmoothQuant", eq. 4, α = 1/2).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from strata.device.machine import fast_dtype
from strata.sae.engine import choosing, vnni
from strata.sae.engine.dispatch import sddmm
from strata.sae.engine.pattern import Pattern, joined, pattern_of

ROWS = 1024  # rows of h in memory at a time on a CPU; with fewer the product is slower
ENTRIES = 2**26  # entries of h in memory at a time on other devices, and with 8-bit numbers
SMALL = 2**17  # with fewer weights, a float32 product of the encoder costs next to nothing


def product_dtype(device: torch.device, weights: int) -> torch.dtype:
    """Return the type of number in which the cheap product of an encoder of so many ``weights`` is computed."""
    if weights < SMALL:
        return torch.float32
    return torch.int8 if device.type == "cpu" and vnni.best() else fast_dtype(device)


@dataclass(frozen=True)
class Block:
    """h of some rows, from floats: h ≈ ``product`` (row, latent) + ``bias`` (latent,)."""

    product: Tensor
    bias: Tensor

    def above(self, low: Tensor) -> Pattern:
        """Return the entries above ``low``, () or (latent,)."""
        if self.product.device.type == "cpu":
            return _pattern(choosing.above(self._bits(), self.bias.numpy(), _each(low, self.bias).numpy()), self.bias)
        return pattern_of(self._h() > low.float())

    def strongest(self, least: int) -> Pattern:
        """Return at least the ``least`` largest positive entries of each row.

        On a CPU there may be some more of them. On other devices there are exactly ``least``, also if not all are
        positive.
        """
        if self.product.device.type == "cpu":
            return _pattern(choosing.strongest(self._bits(), self.bias.numpy(), least), self.bias)
        latents = self._h().topk(min(least, len(self.bias)), dim=1).indices.sort(dim=1).values
        starts = torch.arange(0, latents.numel() + 1, latents.shape[1], device=latents.device)
        return Pattern(starts, latents.flatten(), len(self.bias))

    def _h(self) -> Tensor:
        return self.product.float() + self.bias

    def _bits(self) -> Any:
        """Return the product as the bits of its floats, which is how the loops of `choosing.py` take it."""
        return self.product.view(torch.int16 if self.product.dtype is torch.bfloat16 else torch.int32).numpy()


@dataclass(frozen=True)
class Bytes:
    """h of some rows, from 8-bit numbers; it has the methods of a Block. Arrays are as `vnni.py` makes them.

    ``rows``: the bytes of the rows, and a scale for each. ``encoder``: its panels, where their sums start, and a scale
    for each latent. ``bias``: (latent,). ``padded``: the bias, padded to whole panels. ``number``: how many rows.
    """

    rows: tuple[Any, Any]
    encoder: tuple[Any, Any, Any]
    padded: Any
    bias: Tensor
    number: int

    @classmethod
    def of(cls, y: Tensor, encoder: Tensor, bias: Tensor, balance: Tensor) -> "Bytes":
        """Round all rows of ``y`` (row, width) and the ``encoder`` (latent, width) to 8 bits.

        ``bias``: (latent,). ``balance``: (width,).
        """
        rows = vnni.of_rows(y.contiguous().numpy(), balance.reciprocal().numpy())
        panels = vnni.room(*encoder.shape)
        sums = vnni.of_latents(encoder.contiguous().numpy(), balance.numpy(), panels)
        return cls(rows, (panels, *sums), _panels(bias, bias, 0.0), bias, len(y))

    def split(self, rows: int) -> "list[Bytes]":
        """Split into parts of so many ``rows``, a multiple of the rows of a tile."""
        q, scales = self.rows
        starts = range(0, self.number, rows)
        parts = [((q[i : i + rows], scales[i : i + rows]), min(rows, self.number - i)) for i in starts]
        return [replace(self, rows=part, number=number) for part, number in parts]

    def above(self, low: Tensor) -> Pattern:
        """Return the entries above ``low``, () or (latent,)."""
        return self._pattern(vnni.above, _panels(low, self.bias, torch.inf))

    def strongest(self, least: int) -> Pattern:
        """Return at least the ``least`` largest positive entries of each row, and maybe some more."""
        return self._pattern(vnni.strongest, least)

    def _pattern(self, choose: Callable[..., choosing.Csr], bound: Any) -> Pattern:
        """Call ``choose``, a function of `vnni.py`, with its ``bound``: ``low`` or ``least``."""
        (q, row_scales), (panels, start, scales) = self.rows, self.encoder
        latents = len(self.bias)
        return _pattern(
            choose(self.number, latents, q, row_scales, panels, start, scales, self.padded, bound), self.bias
        )


def _each(low: Tensor, bias: Tensor) -> Tensor:
    """Return ``low``, () or (latent,), as float32 for each latent, (latent,)."""
    return low.float().expand(len(bias)).contiguous()


def _panels(values: Tensor, bias: Tensor, filler: float) -> Any:
    """Return ``values``, () or (latent,), for each latent, and ``filler`` for those that fill up the last panel."""
    return torch.nn.functional.pad(_each(values, bias), (0, -len(bias) % vnni.PANEL), value=filler).numpy()


def _pattern(csr: choosing.Csr, bias: Tensor) -> Pattern:
    """Return the pattern of arrays in CSR form; ``bias``: (latent,) says how many latents there are."""
    starts, latents = map(torch.from_numpy, csr)
    return Pattern(starts, latents, len(bias))


class Preactivations:
    """The pre-activations of a batch ``y`` (row, width), without gradient.

    ``encoder``: (latent, width); ``bias``: (latent,); ``balance``: (width,), see the top of this file.
    """

    def __init__(self, y: Tensor, encoder: Tensor, bias: Tensor, balance: Tensor) -> None:
        self.y, self.encoder, self.bias, self.balance = y, encoder.detach(), bias.detach(), balance
        self.rows, self.latents = len(y), len(encoder)
        self.dtype = product_dtype(y.device, encoder.numel())

    def choose(self, candidates: Callable[[Block | Bytes], Pattern]) -> Pattern:
        """Return the ``candidates`` of all rows. They are chosen from one block of rows after the other."""
        if self.dtype is torch.int8:
            rows = max(1, ENTRIES // self.latents // vnni.BLOCK) * vnni.BLOCK
            return joined([candidates(part) for part in self._bytes.split(rows)])

        rows = ROWS if self.y.device.type == "cpu" else max(1, ENTRIES // self.latents)
        weights = self.encoder.to(self.dtype).T
        parts = self.y.to(self.dtype).split(rows)
        return joined([candidates(Block(part @ weights, self.bias)) for part in parts])

    def at(self, pattern: Pattern) -> Tensor:
        """Return the exact h at the entries of ``pattern``, (entries,)."""
        return sddmm(self.y, self.encoder, pattern, self.bias)

    @cached_property
    def _bytes(self) -> Bytes:
        return Bytes.of(self.y, self.encoder, self.bias, self.balance)
