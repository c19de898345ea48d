"""A finished sparse autoencoder, acting on raw activations.

h = (x − b_dec) W_enc + b_enc        f = relu(top-k of h)   or   f = h · 1[h > θ]·1[h > 0]        x̂ = f W_dec + b_dec
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.sae.kernels import Pattern, decode, from_entries

FLOOR_ROWS = 256  # rows that a threshold's search takes its floor from


@dataclass(frozen=True)
class Codes:
    """The active latents of some rows: their values, (entries,), all above 0, and where they stand."""

    values: Tensor
    pattern: Pattern

    def active(self) -> Tensor:
        """(rows,) how many latents each row has."""
        return self.pattern.starts.diff()


@dataclass(frozen=True)
class SAE:
    """``encoder`` and ``decoder``: (latent, width); ``b_enc``: (latent,); ``b_dec``: (width,).

    Either ``k``, for topk, or ``threshold`` (latent,), for jumprelu and what is stored as such.
    """

    encoder: Tensor
    b_enc: Tensor
    decoder: Tensor
    b_dec: Tensor
    k: int | None = None
    threshold: Tensor | None = None

    @property
    def latents(self) -> int:
        return len(self.encoder)

    @property
    def width(self) -> int:
        return len(self.b_dec)

    def preactivations(self, x: Tensor) -> Tensor:
        """h, (row, latent), in float32."""
        return torch.addmm(self.b_enc, x.float() - self.b_dec, self.encoder.T)

    def encode(self, x: Tensor) -> Codes:
        """Codes of raw activations ``x`` (row, width)."""
        h = self.preactivations(x)
        if self.k is not None:
            values, latents = h.topk(self.k, dim=1)
            latents, order = latents.sort(dim=1)
            values = values.gather(1, order).flatten()
            starts = torch.arange(0, values.numel() + 1, self.k, device=h.device)
            pattern = Pattern(starts, latents.flatten(), self.latents)
            return Codes(values[values > 0], pattern.keep(values > 0))
        assert self.threshold is not None
        entries = (h > self.threshold.clamp(min=0)).flatten().nonzero().flatten()
        return Codes(h.flatten()[entries], from_entries(entries // self.latents, entries % self.latents, h.shape))

    def decode(self, codes: Codes) -> Tensor:
        """Reconstruction, (row, width)."""
        return decode(codes.values, self.decoder, codes.pattern) + self.b_dec

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (row, width) and the number of active latents (row,)."""
        codes = self.encode(x)
        return self.decode(codes), codes.active()


def threshold_for(sae: SAE, blocks: Iterable[Tensor], per_row: float) -> float:
    """The one threshold at which ``sae`` has ``per_row`` active latents a row over ``blocks`` of raw activations.

    It is the exact quantile of all positive h. Only those above a floor are kept, which is where the first rows have
    eight times their share; that the cut does not fall below it is checked.
    """
    kept, wanted, floor = [], 0.0, None
    for x in blocks:
        h = sae.preactivations(x)
        wanted += per_row * len(x)
        if floor is None:
            sample = h[:FLOOR_ROWS].flatten()
            share = min(sample.numel(), round(8 * per_row * min(len(h), FLOOR_ROWS)))
            floor = float(sample.topk(share).values[-1].clamp(min=0))
        h = h.flatten()
        kept.append(h[(h > floor).nonzero().flatten()])
    largest = torch.cat(kept)
    if len(largest) <= wanted:
        assert not floor, "the first rows hold more than eight times the share of large h that all rows do"
        return 0.0
    return float(largest.topk(round(wanted) + 1).values[-2:].double().mean())
