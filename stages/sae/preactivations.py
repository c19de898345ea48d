"""h = y W_enc + b_enc of a batch, which is never there as a whole.

Latents are chosen by a cheap product, a block of rows at a time; what may be chosen is then computed exactly. On CPUs
that multiply bytes (VNNI) the product is of 8-bit numbers, at twice the speed of bfloat16. Rounding a row to 8 bits is
coarse where a few columns are large, as they are in residual streams, so that columns are divided by ``balance`` and
those of W_enc multiplied by it (Xiao et al. 2023, "SmoothQuant", eq. 4, α = 1/2).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stages.sae import cpu
from stages.sae.kernels import Pattern, fast_dtype, joined, pattern_of, sample

ROWS = 1024  # of h at a time on a CPU: fewer make the product slower
ENTRIES = 2**26  # of h at a time elsewhere
SMALL = 2**17  # weights of an encoder for which a float32 product costs nothing


def product_dtype(device: torch.device, weights: int) -> torch.dtype:
    """The numbers that the cheap product of an encoder of so many weights is made of."""
    if weights < SMALL:
        return torch.float32
    return torch.int8 if device.type == "cpu" and torch.cpu._is_vnni_supported() else fast_dtype(device)


@dataclass(frozen=True)
class Block:
    """h ≈ ``scale`` (row,) · ``product`` (row, latent) + ``bias`` (latent,)."""

    product: Tensor
    scale: Tensor
    bias: Tensor

    def above(self, low: Tensor) -> Pattern:
        """The entries above ``low``, () or (latent,)."""
        low = low.float().expand(len(self.bias))
        if self.product.device.type == "cpu":
            return self._pattern(partial(cpu.above, low=low.contiguous().numpy()))
        return pattern_of(self._h() > low)

    def strongest(self, least: int) -> Pattern:
        """At least the ``least`` largest positive entries of each row; elsewhere than on a CPU exactly so many."""
        if self.product.device.type == "cpu":
            return self._pattern(partial(cpu.strongest, least=least))
        latents = self._h().topk(min(least, len(self.bias)), dim=1).indices.sort(dim=1).values
        starts = torch.arange(0, latents.numel() + 1, latents.shape[1], device=latents.device)
        return Pattern(starts, latents.flatten(), len(self.bias))

    def _h(self) -> Tensor:
        return self.product.float() * self.scale[:, None] + self.bias

    def _pattern(self, find: Callable[..., cpu.Csr]) -> Pattern:
        bits = self.product.view(torch.int16 if self.product.dtype is torch.bfloat16 else torch.int32)
        starts, latents = find(bits.numpy(), self.scale.numpy(), self.bias.numpy())
        return Pattern(torch.from_numpy(starts), torch.from_numpy(latents), len(self.bias))


class Preactivations:
    """Those of ``y`` (row, width), without gradient; ``encoder`` (latent, width), ``bias`` (latent,)."""

    def __init__(self, y: Tensor, encoder: Tensor, bias: Tensor, balance: Tensor) -> None:
        self.y, self.encoder, self.bias, self.balance = y, encoder.detach(), bias.detach(), balance
        self.rows, self.latents = len(y), len(encoder)
        self.dtype = product_dtype(y.device, encoder.numel())

    def choose(self, candidates: Callable[[Block], Pattern]) -> Pattern:
        """The ``candidates`` of all blocks."""
        rows = ROWS if self.y.device.type == "cpu" else max(1, ENTRIES // self.latents)
        blocks = self._bytes if self.dtype is torch.int8 else self._floats
        return joined([candidates(block) for block in blocks(rows)])

    def at(self, pattern: Pattern) -> Tensor:
        """(entries,) the exact h."""
        return sample(self.y, self.encoder, pattern, self.bias)

    def _floats(self, rows: int) -> Iterator[Block]:
        weights = self.encoder.to(self.dtype).T
        for part in self.y.to(self.dtype).split(rows):
            yield Block(part @ weights, torch.ones(len(part), device=part.device), self.bias)

    def _bytes(self, rows: int) -> Iterator[Block]:
        q, scales = map(torch.from_numpy, cpu.eight_bit_rows(self.y.numpy(), self.balance.reciprocal().numpy()))
        weights, weight_scales = map(
            torch.from_numpy, cpu.eight_bit_columns(self.encoder.numpy(), self.balance.numpy())
        )
        packed, zeros = torch.ops.aten.to_mkldnn(weights), torch.zeros(self.latents, dtype=torch.long)
        for part, scale in zip(q.split(rows), scales.split(rows), strict=True):
            product = torch.ops.onednn.qlinear_pointwise(
                part, 1.0, 128, packed, weight_scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
            )
            yield Block(product, scale, self.bias)
