"""The families of a layer's latents."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from strata.corpus.read import SPLITS
from strata.families import condensed, export, maps, methods, naming, pictures, profiles, quality, selection
from strata.families import page as pages
from strata.families.knobs import Cluster
from strata.families.read import DEAD, NOISE
from strata.families.similarity import Moments, Sparse, distances, unit, unit_sparse
from strata.families.stability import stability
from strata.interpretation.read import Latents
from strata.rows.shards import Contexts
from strata.run import files
from strata.run.door import BadInput

COLOURED = 14  # clusters, or labels, that have a colour on a map
TOP_DOCUMENTS = 10  # of a cluster
MAPPED = 4000  # documents on the map, at the most
Floats = NDArray[Any]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """What the latents of a layer are compared by.

    ``decoder``: (latents, width). ``document``: (rows,) the document of each activation row. ``titles`` and ``labels``:
    one for every document of the corpus.
    """

    latents: Latents
    decoder: Floats
    document: NDArray[np.int32]
    titles: list[str | None]
    labels: list[str | None]

    @cached_property
    def dead(self) -> NDArray[np.bool_]:
        return self._statistic("dead")

    @cached_property
    def living(self) -> NDArray[np.int64]:
        return np.flatnonzero(~self.dead)

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """(n,) whether interpret's filters kept each living latent."""
        return self._statistic("kept")[self.living]

    @cached_property
    def interest(self) -> Floats:
        """(n,) how interesting each living latent is to a person."""
        return self._statistic("interest")[self.living]

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """The numbers of the documents that have rows, in rising order."""
        return np.unique(self.document).astype(np.int64)

    @cached_property
    def profile(self) -> Sparse:
        """(n, documents) the mean code of each living latent in each document."""
        table = self.latents.table("documents")
        assert table is not None
        latent, document, mean = (table[name].to_numpy() for name in ("latent", "document", "mean"))

        # Row: the latent's number among the living ones. Column: the document's number among those that have rows.
        place = np.searchsorted(self.living, latent), np.searchsorted(self.documents, document)
        return csr_array((mean.astype(np.float32), place), shape=(len(self.living), len(self.documents)))

    def _statistic(self, name: str) -> NDArray[Any]:
        table = self.latents.table("statistics", [name])
        assert table is not None
        return table[name].to_numpy()


def source(
    latents: Latents, decoder: Tensor, contexts: Contexts, titles: list[str | None], labels: list[str | None]
) -> Source:
    """Gather what the latents are compared by.

    ``decoder``: (latents, width). ``titles`` and ``labels``: one for every document of the corpus. Raises BadInput if
    the parts do not belong together (see :func:`check`).
    """
    document = np.concatenate([contexts.rows(split)[1] for split in SPLITS])
    gathered = Source(latents, decoder.float().numpy(), document, titles, labels)
    check(gathered)
    return gathered


def check(source: Source) -> None:
    """Raise BadInput if the latents were made from another SAE or other rows, or if the layer has no living latent."""
    meta, folder = source.latents.meta, source.latents.folder
    if (latents := len(source.decoder)) != meta["latents"]:
        raise BadInput(f"{folder} is of {meta['latents']} latents, but the SAE has {latents}; run interpret again")
    if len(source.document) != meta["rows"]:
        raise BadInput(
            f"{folder} is of {meta['rows']} tokens, but {len(source.document)} are stored; run interpret again"
        )
    if len(source.living) == 0:
        raise BadInput(
            f"layer {meta['layer']} has no living latent, so there is nothing to cluster; train it otherwise"
        )


@dataclass(frozen=True)
class _Grouping:
    """A grouping of the n living latents, and everything else that can only be computed from all their distances.

    ``silhouettes``: (n,), NaN where a latent has none. ``medoids``: (clusters,) numbers among the living latents.
    ``quality``: the report's measures of it. ``reseeded``: the labels (n,) from other seeds, none where the method does
    not depend on a seed. ``near``: the neighbours on the map of families, None where the map shows decoder directions.
    """

    grouped: methods.Grouped
    silhouettes: Floats
    medoids: Labels
    quality: dict[str, float | None]
    reseeded: list[Labels]
    near: maps.Near | None

    @property
    def labels(self) -> Labels:
        return self.grouped.labels

    @property
    def clusters(self) -> int:
        return int(self.labels.max()) + 1


def cluster(source: Source, knobs: Cluster, seed: int, folder: Path) -> dict[str, Any]:
    """Group the living latents into families. Write `data/clusters/<L>/` into ``folder``; return the report's numbers.

    Below, n is the number of living latents.
    """
    n = len(source.living)
    grouping = _group(source, knobs, seed)
    labels, clusters, medoids = grouping.labels, grouping.clusters, grouping.medoids

    # Each resampled grouping needs distances of its own; only one set of them is in memory at a time.
    trust = stability(
        labels,
        lambda times: methods.group(compared(source, knobs, times), n, knobs, seed).labels,
        grouping.reseeded,
        len(source.documents),
        knobs.stability,
        seed,
    )

    # The tables: families with their scores, and the latents that later stages work on.
    if grouping.grouped.tree is not None:
        files.write_array(folder / "tree.npy", grouping.grouped.tree)
    codes, kept = selection.in_units(source.profile), np.where(source.kept, labels, NOISE)
    families = _families(source, knobs, labels, clusters, medoids, grouping.silhouettes)
    families |= _scores(codes, kept, clusters, knobs)
    chosen = selection.select(codes, kept, source.living, clusters, knobs.selection)
    files.write_json(folder / "selected.json", {**knobs.selection.model_dump(), "latents": chosen})
    _profiles(source, knobs, families["profiles"], folder)
    columns = {name: families[name] for name in export.CLUSTERS.names}
    files.write_table(folder / "clusters.parquet", columns, export.CLUSTERS)

    # The pictures.
    places = maps.layout(unit(source.decoder[source.living].astype(np.float32)), grouping.near, knobs.map, seed)
    _map(source, labels, places, families, [entry["latent"] for entry in chosen], folder)
    _latents(source, labels, medoids, grouping.silhouettes, places, folder)
    _documents(source, knobs, seed, folder)
    _heatmaps(source, knobs, families, folder)

    # meta.json comes last: with it the folder is complete.
    size = families["size"]
    counts = {
        "latents": len(source.dead),
        "living": n,
        "clusters": clusters,
        "noise": int((labels == NOISE).sum()),
        "largest": int(size.max(initial=0)),
        "single": int((size == 1).sum()),
        "selected": len(chosen),
    }
    meta = {
        "layer": source.latents.meta["layer"],
        "width": source.decoder.shape[1],
        **counts,
        "parameters": grouping.grouped.parameters,
        "seed": seed,
        "cluster": knobs.model_dump(),
        "files": files.hashes(folder),
    }
    files.write_json(folder / "meta.json", meta)

    best_families = [
        {name: np.asarray(families[name])[c].item() for name in ("cluster", "size", "medoid", "name", "composite")}
        for c in np.argsort(-families["composite"], kind="stable")[:COLOURED].tolist()
    ]
    return {
        "layer": source.latents.meta["layer"],
        **counts,
        "parameters": grouping.grouped.parameters,
        "quality": grouping.quality,
        "stability": trust,
        "tried": grouping.grouped.tried,
        "families": best_families,
        "chosen": chosen,
    }


def _group(source: Source, knobs: Cluster, seed: int) -> _Grouping:
    """Group the living latents, and take all that is needed from their distances.

    The distances (n² / 2 floats) are by far the largest thing in memory; they are freed when this function returns.
    """
    n = len(source.living)
    distance = compared(source, knobs)
    grouped = methods.group(distance, n, knobs, seed)
    silhouettes, medoids, measures = _held_together(distance, grouped.labels)

    seeds = range(seed + 1, seed + 1 + knobs.stability.reseeds) if knobs.method == "kmeans" else ()
    reseeded = [methods.group(distance, n, knobs, other_seed).labels for other_seed in seeds]
    near = condensed.nearest(distance, n, min(n, knobs.map.neighbours)) if knobs.map.of == "families" else None
    return _Grouping(grouped, silhouettes, medoids, measures, reseeded, near)


def _held_together(distance: Floats, labels: Labels) -> tuple[Floats, Labels, dict[str, float | None]]:
    """Measure how well the clusters hold together: silhouettes (n,), medoids (clusters,), the report's measures.

    All three come from the summed distances of each latent from each cluster, (n, clusters), which can be as large as
    the distances themselves and are freed when this function returns.
    """
    clusters = int(labels.max()) + 1
    sums = condensed.summed(distance, labels, clusters)

    silhouettes = quality.silhouettes(sums, labels)
    if silhouettes is None:
        silhouettes = np.full(len(labels), np.nan)
    medoids = quality.medoids(sums, labels) if clusters else np.empty(0, np.int64)
    return silhouettes, medoids, quality.indices(sums, labels)


def compared(source: Source, knobs: Cluster, times: Floats | None = None) -> Floats:
    """Return the condensed distances (see `similarity.py`) of the living latents.

    ``times``: (documents,) how often each document counts, as a bootstrap draws them; None: once each.
    """
    latents, n = source.latents, len(source.living)

    # A document that counts t times has t times the weight in each sum over rows. In the cosine of two profiles it is
    # a product of two entries, so that each of them grows by √t.
    weight, profile = np.ones(len(source.document)), source.profile
    if times is not None:
        weight = times[np.searchsorted(source.documents, source.document)]
        profile = csr_array(profile * np.sqrt(times).astype(np.float32))

    moments = Moments.empty(n)
    if knobs.weights.correlation or knobs.weights.jaccard:
        for number, shard in enumerate(latents.codes.shards):
            first, end = shard["first"], shard["first"] + shard["rows"]
            codes = latents.codes.shard(number)
            starts = np.append(codes.starts[:-1][source.living], codes.starts[-1])  # dead latents have no entries
            moments.add(replace(codes, starts=starts), weight[first:end])
    return distances(source.decoder[source.living], profile, moments, knobs.weights)


def _families(
    source: Source, knobs: Cluster, labels: Labels, clusters: int, medoids: Labels, silhouettes: Floats
) -> dict[str, Any]:
    """Describe each cluster: columns of `clusters.parquet`, and ``profiles`` (clusters, documents).

    ``medoids``: (clusters,) numbers among the living latents. ``silhouettes``: (n,).
    """
    members = [source.living[labels == c].tolist() for c in range(clusters)]
    medoid_ids = source.living[medoids]
    names = naming.names(members, medoid_ids.tolist(), naming.words(source.latents), knobs.name_words)

    inside = labels >= 0  # noise belongs to no cluster
    size = quality.sizes(labels, clusters)
    return {
        "cluster": np.arange(clusters),
        "size": size,
        "medoid": medoid_ids,
        "name": names,
        "silhouette": np.bincount(labels[inside], silhouettes[inside], clusters) / size,
        "interest": np.bincount(labels[inside], source.interest[inside], clusters) / size,
        "profiles": profiles.cluster_profiles(source.profile, labels, clusters),
    }


def _scores(codes: Sparse, kept: Labels, clusters: int, knobs: Cluster) -> dict[str, Any]:
    """Score each cluster: the remaining columns of `clusters.parquet`.

    ``codes``: (n, documents). ``kept``: (n,) the labels, but NOISE for latents that interpret's filters dropped: these
    do not count.
    """
    scores = selection.cluster_scores(codes, kept, clusters, knobs.selection.threshold)
    return {"kept": scores.pop("size").astype(np.int64), **scores}


def _profiles(source: Source, knobs: Cluster, profile: Sparse, folder: Path) -> None:
    """Write `profiles.parquet`, `documents.parquet` and `correlated.parquet`. ``profile``: (clusters, documents)."""
    cluster = np.repeat(np.arange(profile.shape[0]), np.diff(profile.indptr))
    columns = {"cluster": cluster, "document": source.documents[profile.indices], "mean": profile.data}
    files.write_table(folder / "profiles.parquet", columns, export.PROFILES)

    top = profiles.top_documents(profile, TOP_DOCUMENTS)
    document = source.documents[top["column"]]
    columns = {
        **top,
        "document": document,
        "title": [source.titles[d] for d in document],
        "label": [source.labels[d] for d in document],
    }
    files.write_table(folder / "documents.parquet", columns, export.DOCUMENTS)

    pairs = profiles.correlated(profile, knobs.correlated)
    files.write_table(folder / "correlated.parquet", pairs, export.CORRELATED)


def _map(
    source: Source, labels: Labels, places: Floats, families: dict[str, Any], chosen: list[int], folder: Path
) -> None:
    """Write `map.png` and `map.html`, with the clearest and most interesting families in colour.

    ``places``: (n, 2) the living latents on the map. ``chosen``: the selected latents, which get a ring.
    """
    coloured = pictures.clearest(families)[:COLOURED]
    groups = [np.flatnonzero(labels == c) for c in coloured]
    titles = [f"{families['name'][c]}  ({families['size'][c]})" for c in coloured]
    stars = places[np.isin(source.living, chosen)]
    files.write_bytes(folder / "map.png", pictures.scatter(places, groups, titles, "other latents", stars))

    page = pages.render(source.latents, source.living, labels, places, families, coloured.tolist(), chosen)
    files.write_text(folder / "map.html", page)


def _latents(
    source: Source, labels: Labels, medoids: Labels, silhouettes: Floats, places: Floats, folder: Path
) -> None:
    """Write `latents.parquet`: one row for each latent, including the dead ones."""
    latents = len(source.dead)
    columns: dict[str, Any] = {name: np.full(latents, np.nan) for name in ("silhouette", "x", "y")}
    columns |= {"latent": np.arange(latents), "cluster": np.full(latents, DEAD), "medoid": np.zeros(latents, bool)}

    living = {"cluster": labels, "silhouette": silhouettes, "x": places[:, 0], "y": places[:, 1]}
    for name, values in living.items():
        columns[name][source.living] = values
    columns["medoid"][source.living[medoids]] = True
    files.write_table(folder / "latents.parquet", columns, export.LATENTS)


def _documents(source: Source, knobs: Cluster, seed: int, folder: Path) -> None:
    """Write the map of the documents by their mean codes: a table, and a picture coloured by label."""
    count = len(source.documents)
    drawn = np.sort(np.random.default_rng([seed, 2]).permutation(count)[:MAPPED])

    # (drawn documents, n): scaled by latent first, so that a latent with large codes does not outweigh the others.
    vectors = unit_sparse(csr_array(unit_sparse(source.profile).T.tocsr()[drawn])).toarray()
    places = maps.layout(vectors, None, knobs.map, seed)

    document = source.documents[drawn]
    labels = [source.labels[d] for d in document]
    columns = {
        "document": document,
        "title": [source.titles[d] for d in document],
        "label": labels,
        "x": places[:, 0],
        "y": places[:, 1],
    }
    files.write_table(folder / "document_map.parquet", columns, export.DOCUMENT_MAP)

    groups, names = pictures.label_groups(labels, COLOURED)
    titles = [f"{name}  ({len(group)})" for name, group in zip(names, groups, strict=True)]
    files.write_bytes(folder / "documents.png", pictures.scatter(places, groups, titles, "other documents", places[:0]))


def _heatmaps(source: Source, knobs: Cluster, families: dict[str, Any], folder: Path) -> None:
    """Write the heatmaps of the clusters with the best scores, and of their medoids, over documents.

    The documents stand in the order of their labels. Writes nothing where there is no cluster.
    """
    labels = [source.labels[d] for d in source.documents]
    order = sorted(range(len(labels)), key=lambda column: (labels[column] or "", column))
    ordered_labels = [labels[column] for column in order]
    best = np.sort(np.lexsort((families["cluster"], -families["composite"]))[: knobs.heatmap])
    if len(best) == 0:
        return

    names = [f"{families['name'][c]}  ({families['size'][c]})" for c in best]
    values = families["profiles"][best].toarray()[:, order]  # (best clusters, documents)
    picture = pictures.heatmap(values, names, ordered_labels, "mean code, share of the cluster's largest")
    files.write_bytes(folder / "clusters.png", picture)

    medoids = families["medoid"][best]
    names = [f"{latent}: {families['name'][c]}" for latent, c in zip(medoids.tolist(), best, strict=True)]
    values = source.profile[np.searchsorted(source.living, medoids)].toarray()[:, order]
    picture = pictures.heatmap(values, names, ordered_labels, "mean code, share of the latent's largest")
    files.write_bytes(folder / "latents.png", picture)
