"""How alike latents are, and groups of them, on plain arrays; no SAE has to be there.

    distance = strata.similarity.cosine_distances(sae.decoder)
    labels = strata.similarity.group(distance, clusters=256)
    medoids = strata.similarity.medoids(distance, labels)
    overlaps = strata.similarity.jaccard(latents, least=0.5)

:func:`strata.cluster` does more with less: names, maps, several similarities at once, a verdict on the families.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csc_array, csr_array
from scipy.spatial.distance import squareform
from torch import Tensor

from strata import defaults
from strata.families import condensed, methods, quality, similarity
from strata.families.knobs import Grouping, Weights
from strata.families.read import NOISE
from strata.front.latents import Latents
from strata.run import door, params
from strata.run.door import BadInput
from strata.sae.sae import SAE

__all__ = ["cosine_distances", "group", "jaccard", "medoids"]

BLOCK = 1024  # latents whose overlaps with all others are in memory at a time
COSINE = Weights(decoder=1, profile=0, correlation=0, jaccard=0)
DISTANCE = "it must be (latents, latents), or the pairs of those in scipy's order"
Floats = NDArray[Any]
Labels = NDArray[np.int64]


def jaccard(codes: Any, least: float = 0.0) -> csr_array:
    """Compute how much the rows on which latents fire overlap: the pairs of at least ``least``, sparse.

        J_ij = |A_i ∩ A_j| / |A_i ∪ A_j|,    A_j the rows where the code of latent j is above 0

    ``codes``: what :func:`strata.latents` gives, or (row, latent), an array, a tensor or a sparse matrix. Returns
    (latent, latent), symmetric, float32. The diagonal is 1, and empty for a latent that never fires, which is like no
    other. A pair that never fires together has no entry, whatever ``least`` is.

    >>> jaccard(np.array([[1, 1], [1, 0], [0, 0]])).toarray().tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    door.finite("least", least)
    if not 0 <= least <= 1:
        raise BadInput(f"least is {least!r}; it must be from 0 to 1")
    shards = _fires(codes)
    rows_of = np.sum([shard.sum(0) for shard in shards()], axis=0)  # (latent,) how many rows it fires on

    parts = []
    for first in range(0, len(rows_of), BLOCK):
        block = slice(first, first + BLOCK)

        # (latents of the block, latents) on how many rows both fire
        both = csr_array((len(rows_of[block]), len(rows_of)), dtype=np.int64)
        for shard in shards():
            both = both + shard[:, block].T @ shard
        both = both.tocoo()

        value = both.data / (rows_of[block][both.row] + rows_of[both.col] - both.data)
        kept = value >= least
        entries = (value[kept].astype(np.float32), (both.row[kept], both.col[kept]))
        parts.append(csr_array(entries, shape=both.shape))
    return csr_array(sparse.vstack(parts))


def _fires(codes: Any) -> Callable[[], Iterable[csc_array]]:
    """What gives ``codes`` shard by shard, as (row, latent) with a 1 where a latent fires."""
    if isinstance(codes, Latents):
        opened, n = codes.opened.codes, len(codes)

        def shards() -> Iterator[csc_array]:
            for number, shard in enumerate(opened.shards):
                columns = opened.shard(number)
                entries = (np.ones(len(columns.rows), np.int64), columns.rows, columns.starts)
                yield csc_array(entries, shape=(shard["rows"], n))

        return shards
    if not sparse.issparse(codes):
        codes = _numbers("codes", codes, "it must be what strata.latents gives, or (row, latent)")
    fires = csc_array(codes > 0, dtype=np.int64)
    return lambda: [fires]


def cosine_distances(decoder: Any) -> Floats:
    """Compute the distances 1 − cosine of all pairs of decoder rows, (latent, latent), float32, from 0 to 2.

    ``decoder``: (latent, width), an array or a tensor; or an SAE, whose decoder is taken. A row of zeros is at a
    distance of 1 from every other. 16,384 latents take 1 GB.

    >>> cosine_distances(np.array([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])).tolist()
    [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    """
    model = getattr(decoder, "sae", decoder)
    rows = model.decoder if isinstance(model, SAE) else decoder
    directions = _numbers("decoder", rows, "it must be an SAE, or (latent, width)")
    n, unused = len(directions), np.zeros(0, np.float32)
    nothing = similarity.Moments(unused, unused, np.zeros(n), np.zeros(n), np.zeros(n))
    return squareform(similarity.distances(directions, csr_array((n, 1)), nothing, COSINE), checks=False)


def group(distance: Any, method: str = "agglomerative", seed: int = 0, **knobs: Any) -> Labels:
    """Group latents by their distances; return the group of each, (latent,), numbered by falling size; -1 is noise.

    ``distance``: (latent, latent), or the pairs in scipy's condensed order. ``method``: agglomerative (average
    linkage), kmeans, dbscan or hdbscan. ``knobs``: others of the section cluster of params.yaml that say how to group:
    ``clusters`` (a number, or a share of the latents), ``distance`` to cut the tree at, ``eps``, ``min_samples`` …

    >>> group(cosine_distances(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]])), clusters=2).tolist()
    [0, 1, 0]
    """
    pairs, n = _condensed(distance)
    section = defaults.section("cluster")
    known = {name: section[name] for name in Grouping.model_fields}
    settings = params.check(defaults.changed(known, {"method": method, **knobs}), Grouping, "cluster")
    return methods.group(pairs, n, settings, seed).labels


def medoids(distance: Any, labels: Any) -> Labels:
    """Find the member of each group with the least summed distance from the others, (group,).

    ``distance``: as :func:`group` takes it. ``labels``: (latent,) 0, 1, … without a gap; below 0: of no group. Of equal
    sums the first member is taken.

    >>> medoids(np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]]), [0, 0, 0]).tolist()
    [1]
    """
    pairs, n = _condensed(distance)
    given = np.asarray(labels)
    if given.shape != (n,) or given.dtype.kind not in "iu":
        raise BadInput(f"labels is an array of {given.dtype} {given.shape}; it must be a whole number for each of {n}")
    groups = np.unique(given[given >= 0])
    if not np.array_equal(groups, np.arange(len(groups))):
        raise BadInput(f"labels are {groups[:5].tolist()} and so on; they must be 0, 1, … without a gap")
    own = np.maximum(given.astype(np.int64), NOISE)
    return quality.medoids(condensed.summed(pairs, own, len(groups)), own)


def _condensed(distance: Any) -> tuple[Floats, int]:
    """The distances of all pairs in scipy's order, float32, and the number of latents."""
    given = _numbers("distance", distance, DISTANCE, dimensions=(1, 2))
    if given.ndim == 1:
        n = round((1 + np.sqrt(1 + 8 * len(given))) / 2)
        if similarity.pairs(n) != len(given):
            raise BadInput(f"distance is an array of {given.shape}, which are the pairs of no whole number; {DISTANCE}")
        return given, n
    if given.shape[0] != given.shape[1] or np.diag(given).any() or not np.allclose(given, given.T, atol=1e-5):
        raise BadInput(
            f"distance is an array of {given.shape} that is not symmetric with 0 on its diagonal; {DISTANCE}"
        )
    return squareform(given, checks=False), len(given)


def _numbers(name: str, value: Any, remedy: str, dimensions: tuple[int, ...] = (2,)) -> Floats:
    """``value`` as a float32 array of so many ``dimensions``."""
    numbers = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
    if not isinstance(numbers, np.ndarray):
        raise BadInput(f"{name} is {door.a_thing(value)}; {remedy}")
    if numbers.ndim not in dimensions or numbers.dtype.kind not in "fiub" or not numbers.size:
        raise BadInput(f"{name} is an array of {numbers.dtype} {numbers.shape}; {remedy}")
    numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise BadInput(f"{name} holds NaN or infinity; {remedy}")
    return numbers
