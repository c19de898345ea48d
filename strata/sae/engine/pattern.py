"""The pattern of sparse codes: which latents are active in which row.

A code matrix is (row, latent) and has few entries in each row. Its pattern is kept in CSR form.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from strata.sae.engine import products


@dataclass(frozen=True)
class Pattern:
    """Where a (row, latent) code matrix has entries.

    ``starts``: (rows + 1,) int64, the first entry of each row, and the end. ``latents``: (entries,) int64, the latent
    of each entry. ``width``: the number of latents.
    """

    starts: Tensor
    latents: Tensor
    width: int

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def row_of(self) -> Tensor:
        """(entries,) the row of each entry."""
        rows = torch.arange(self.rows, device=self.latents.device)
        return torch.repeat_interleave(rows, self.starts.diff(), output_size=len(self.latents))

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The entries ordered by latent, and by row within a latent (CSC form).

        Their ``order``, (entries,), which numbers the entries of this pattern; ``firsts``, (width + 1,), the first of
        each latent, and the end; and their ``rows``, (entries,).
        """
        if self.latents.device.type == "cpu":
            csc = products.transposed(self.starts.numpy(), self.latents.numpy(), self.width)
            order, firsts, rows = map(torch.from_numpy, csc)
            return order, firsts, rows
        latents, order = torch.sort(self.latents, stable=True)
        firsts = torch.searchsorted(latents, torch.arange(self.width + 1, device=latents.device))
        return order, firsts, self.row_of[order]

    def dense(self, values: Tensor) -> Tensor:
        """Return the (row, latent) matrix with ``values`` (entries,). It is large: for tests and small patterns."""
        out = torch.zeros(self.rows, self.width, dtype=values.dtype, device=values.device)
        return out.index_put((self.row_of, self.latents), values)

    def keep(self, mask: Tensor) -> "Pattern":
        """Return the pattern of the entries where ``mask`` (entries,) is True."""
        ends = torch.cat([mask.new_zeros(1, dtype=torch.long), mask.cumsum(0)])
        return Pattern(ends[self.starts], self.latents[mask], self.width)


def pattern_of(mask: Tensor) -> Pattern:
    """Return the pattern of a dense boolean (row, latent) matrix."""
    return Pattern(_starts(mask.sum(1)), mask.nonzero()[:, 1], mask.shape[1])


def joined(parts: list[Pattern]) -> Pattern:
    """Return one pattern with the rows of all ``parts``, one below the other."""
    if len(parts) == 1:
        return parts[0]
    latents = torch.cat([part.latents for part in parts])
    return Pattern(_starts(torch.cat([part.starts.diff() for part in parts])), latents, parts[0].width)


def _starts(counts: Tensor) -> Tensor:
    """Return the ``starts`` of rows with these ``counts`` (row,) of entries."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
