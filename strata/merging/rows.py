"""Read the rows of a layer together with the codes that interpret wrote, some rows at a time."""

from collections.abc import Iterator

import torch
from scipy.sparse import csc_array
from torch import Tensor

from strata.interpretation import read
from strata.rows.shards import Activations
from strata.run.progress import each
from strata.sae.engine.pattern import Pattern
from strata.sae.sae import Codes

ROWS = 8192


def blocks(
    activations: Activations, codes: read.Codes, first: int, end: int, rows: int = ROWS
) -> Iterator[tuple[Tensor, Codes]]:
    """Yield the rows ``first`` to ``end`` - 1 in order, (row, width), with their codes.

    One shard's codes and ``rows`` rows are in memory at a time.
    """
    for number, shard in enumerate(codes.shards):
        start, stop = max(first, shard["first"]), min(end, shard["first"] + shard["rows"])
        if start >= stop:
            continue

        # The codes lie sorted by latent; sort them by row.
        by_latent = codes.shard(number)
        shape = (shard["rows"], codes.latents)
        table = csc_array((by_latent.values, by_latent.rows, by_latent.starts), shape=shape).tocsr()
        starts, latents = torch.from_numpy(table.indptr).long(), torch.from_numpy(table.indices).long()
        values = torch.from_numpy(table.data)

        for block_first in each(range(start, stop, rows), "read", "blocks"):
            block_end = min(block_first + rows, stop)
            in_shard = slice(block_first - shard["first"], block_end - shard["first"])  # its rows
            entries = slice(int(starts[in_shard.start]), int(starts[in_shard.stop]))
            block_starts = starts[in_shard.start : in_shard.stop + 1] - starts[in_shard.start]
            pattern = Pattern(block_starts, latents[entries], codes.latents)
            yield activations.read(block_first, block_end), Codes(values[entries], pattern)
