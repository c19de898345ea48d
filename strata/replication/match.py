"""Match the latents of two dictionaries one to one.

The Hungarian assignment of all F × F similarities takes 8 F² bytes, and time that grows as F³. Only pairs above a
threshold say that a latent comes again, and these are few. So the assignment is made among them alone: one to one, so
that the sum of the similarities is largest. Pairs in different connected components of the graph of these pairs cannot
compete. Therefore one Hungarian assignment in each component gives the exact optimum.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from strata.replication.knobs import BLOCK

Ints, Floats = NDArray[np.int64], NDArray[np.float64]
NOBODY = -1  # the partner of a latent that has none


@dataclass(frozen=True)
class Similar:
    """The similarities of two dictionaries that are above a threshold. ``latents``: how many each of them has.

    ``first``, ``second``, ``value``: (pair,) the latents and the similarity of each pair. ``best``: (latent of the
    first,) its largest similarity with any latent of the second, whether above the threshold or not.
    """

    latents: tuple[int, int]
    first: Ints
    second: Ints
    value: Floats
    best: Floats


def similar(blocks: Iterable[NDArray[np.floating]], latents: tuple[int, int], least: float) -> Similar:
    """Collect the pairs above ``least``.

    ``blocks``: the similarities of some latents of the first dictionary after the others, (row, latent of the second).
    """
    pairs, best, start = [], np.zeros(latents[0]), 0
    for block in blocks:
        rows, columns = np.nonzero(block > least)
        pairs.append((rows + start, columns, block[rows, columns].astype(np.float64)))
        best[start : start + len(block)] = block.max(1)
        start += len(block)
    first, second, value = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return Similar(latents, first, second, value, best)


def by_cosine(first: Tensor, second: Tensor, least: float) -> Similar:
    """Compare decoder rows, (latent, width) each, by their cosine. A row of zeros has a cosine of 0 with all others."""
    one, other = normalize(first.float(), dim=1), normalize(second.float(), dim=1)
    starts = range(0, len(one), BLOCK)
    blocks = ((one[start : start + BLOCK] @ other.T).cpu().numpy() for start in starts)
    return similar(blocks, (len(one), len(other)), least)


def assigned(pairs: Similar) -> Ints:
    """Match the pairs one to one so that the sum of their similarities is largest.

    Returns (latent of the first,) its partner in the second, or NOBODY.
    """
    partner = np.full(pairs.latents[0], NOBODY)
    if not len(pairs.first):
        return partner

    # Both sides are the nodes of one graph: first the latents of the first dictionary, then those of the second.
    nodes = sum(pairs.latents)
    graph = coo_array((pairs.value, (pairs.first, pairs.second + pairs.latents[0])), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][pairs.first]  # (pair,)

    order = np.argsort(component, kind="stable")
    starts = np.flatnonzero(np.diff(component[order], prepend=-1))
    for members in np.split(order, starts[1:]):
        first, row = np.unique(pairs.first[members], return_inverse=True)
        second, column = np.unique(pairs.second[members], return_inverse=True)
        value = np.zeros((len(first), len(second)))  # 0: no pair
        value[row, column] = pairs.value[members]
        rows, columns = linear_sum_assignment(value, maximize=True)
        is_pair = value[rows, columns] > 0
        partner[first[rows[is_pair]]] = second[columns[is_pair]]
    return partner
