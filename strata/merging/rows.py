"""The rows of a layer with the codes that interpret wrote of them, some at a time."""

from collections.abc import Iterator

import torch
from scipy.sparse import csc_array
from torch import Tensor

from strata.interpretation import read
from strata.rows.shards import Activations
from strata.sae.engine.pattern import Pattern
from strata.sae.sae import Codes

ROWS = 8192


def blocks(
    activations: Activations, codes: read.Codes, first: int, end: int, rows: int = ROWS
) -> Iterator[tuple[Tensor, Codes]]:
    """Rows first … end-1 in order, (row, width), and their codes. In memory are one shard's codes and ``rows`` rows."""
    for number, shard in enumerate(codes.shards):
        start, stop = max(first, shard["first"]), min(end, shard["first"] + shard["rows"])
        if start >= stop:
            continue
        found = codes.shard(number)
        table = csc_array((found.values, found.rows, found.starts), shape=(shard["rows"], codes.latents)).tocsr()
        starts, latents = torch.from_numpy(table.indptr).long(), torch.from_numpy(table.indices).long()
        values = torch.from_numpy(table.data)
        for at in range(start, stop, rows):
            here = slice(at - shard["first"], min(at + rows, stop) - shard["first"])
            part = slice(int(starts[here.start]), int(starts[here.stop]))
            pattern = Pattern(starts[here.start : here.stop + 1] - starts[here.start], latents[part], codes.latents)
            yield activations.read(at, min(at + rows, stop)), Codes(values[part], pattern)
