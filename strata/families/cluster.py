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
from strata.pages.readable import explained
from strata.rows.shards import Contexts
from strata.run import files
from strata.run.door import BadInput
from strata.tables import parquet

COLOURED = 14  # clusters, or labels, that have a colour on a map
TOP_DOCUMENTS = 10  # of a cluster
MAPPED = 4000  # documents on the map, at the most
Floats = NDArray[Any]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """What latents are compared by. ``decoder``: (latents, width). ``document``: (rows,) of each activation row.
    ``titles`` and ``labels``: of every document of the corpus."""

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
        """(n,) of the living latents, those that interpret's filters kept."""
        return self._statistic("kept")[self.living]

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """The documents that have rows, ascending."""
        return np.unique(self.document).astype(np.int64)

    @cached_property
    def profile(self) -> Sparse:
        """(n, documents) the mean code of each living latent over each document."""
        table = self.latents.table("documents")
        assert table is not None
        latent, document, mean = (table[name].to_numpy() for name in ("latent", "document", "mean"))
        place = np.searchsorted(self.living, latent), np.searchsorted(self.documents, document)
        return csr_array((mean.astype(np.float32), place), shape=(len(self.living), len(self.documents)))

    def _statistic(self, name: str) -> NDArray[Any]:
        table = self.latents.table("statistics", [name])
        assert table is not None
        return table[name].to_numpy()


def source(latents: Latents, decoder: Tensor, contexts: Contexts, *corpus: list[str | None]) -> Source:
    """Gather it; ``corpus``: the title and the label of every document. Refuses parts that do not belong together."""
    document = np.concatenate([contexts.rows(split)[1] for split in SPLITS])
    found = Source(latents, decoder.float().numpy(), document, *corpus)
    check(found)
    return found


def check(source: Source) -> None:
    """Refuse an SAE and rows that the latents were not made from, and a layer without any living latent."""
    meta, folder = source.latents.meta, source.latents.folder
    if (found := len(source.decoder)) != meta["latents"]:
        raise BadInput(f"{folder} is of {meta['latents']} latents, but the SAE has {found}; run interpret again")
    if len(source.document) != meta["rows"]:
        raise BadInput(
            f"{folder} is of {meta['rows']} tokens, but {len(source.document)} are stored; run interpret again"
        )
    if len(source.living) == 0:
        raise BadInput(
            f"layer {meta['layer']} has no living latent, so there is nothing to cluster; train it otherwise"
        )


def cluster(source: Source, knobs: Cluster, seed: int, folder: Path) -> dict[str, Any]:
    """Write `data/clusters/<L>/` into ``folder``; return the report's numbers."""
    n = len(source.living)
    distance = compared(source, knobs)
    grouped = methods.group(distance, n, knobs, seed)
    labels = grouped.labels
    clusters = int(labels.max()) + 1

    # How well the clusters hold together. The sums are as large as the distances, so they go as soon as they can.
    sums = condensed.summed(distance, labels, clusters)
    each = quality.silhouettes(sums, labels)
    medoids = quality.medoids(sums, labels) if clusters else np.empty(0, np.int64)
    measured = quality.indices(sums, labels)
    del sums

    # The same with other seeds, and which latents are near on the map: the last that needs all distances.
    reseeds = range(seed + 1, seed + 1 + knobs.stability.reseeds) if knobs.method == "kmeans" else ()
    reseeded = [methods.group(distance, n, knobs, other).labels for other in reseeds]
    near = condensed.nearest(distance, n, min(n, knobs.map.neighbours)) if knobs.map.of == "families" else None
    del distance

    trust = stability(
        labels,
        lambda times: methods.group(compared(source, knobs, times), n, knobs, seed).labels,
        reseeded,
        len(source.documents),
        knobs.stability,
        seed,
    )

    # The tables: families with their scores, and the latents that later stages work on.
    each = np.full(n, np.nan) if each is None else each
    if grouped.tree is not None:
        files.write_array(folder / "tree.npy", grouped.tree)
    lit, kept = selection.in_units(source.profile), np.where(source.kept, labels, NOISE)
    families = _families(source, knobs, labels, clusters, medoids, each)
    families |= _scores(lit, kept, clusters, knobs)
    chosen = selection.select(lit, kept, source.living, clusters, knobs.selection)
    files.write_json(folder / "selected.json", {**knobs.selection.model_dump(), "latents": chosen})
    _profiles(source, knobs, families["profiles"], folder)
    columns = {name: families[name] for name in export.CLUSTERS.names}
    parquet.write(folder / "clusters.parquet", columns, export.CLUSTERS)

    # The pictures.
    places = maps.layout(unit(source.decoder[source.living].astype(np.float32)), near, knobs.map, seed)
    _map(source, labels, places, families, [entry["latent"] for entry in chosen], folder)
    _latents(source, labels, medoids, each, places, folder)
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
        "parameters": grouped.parameters,
        "seed": seed,
        "cluster": knobs.model_dump(),
        "files": files.hashes(folder),
    }
    files.write_json(folder / "meta.json", meta)

    shown = [
        {name: np.asarray(families[name])[c].item() for name in ("cluster", "size", "medoid", "name", "composite")}
        for c in np.argsort(-families["composite"], kind="stable")[:COLOURED].tolist()
    ]
    return {
        "layer": source.latents.meta["layer"],
        **counts,
        "parameters": grouped.parameters,
        "quality": measured,
        "stability": trust,
        "tried": grouped.tried,
        "families": shown,
        "chosen": chosen,
    }


def compared(source: Source, knobs: Cluster, times: Floats | None = None) -> Floats:
    """Condensed distances of the living latents, every document taken ``times`` (documents,) often; None: once."""
    latents, n = source.latents, len(source.living)
    moments, weight, profile = Moments.empty(n), np.ones(len(source.document)), source.profile
    if times is not None:
        weight = times[np.searchsorted(source.documents, source.document)]
        profile = csr_array(profile * np.sqrt(times).astype(np.float32))
    if knobs.weights.correlation or knobs.weights.jaccard:
        for number, shard in enumerate(latents.codes.shards):
            first, end = shard["first"], shard["first"] + shard["rows"]
            codes = latents.codes.shard(number)
            starts = np.append(codes.starts[:-1][source.living], codes.starts[-1])  # the dead have no entries
            moments.add(replace(codes, starts=starts), weight[first:end])
    return distances(source.decoder[source.living], profile, moments, knobs.weights)


def _families(
    source: Source, knobs: Cluster, labels: Labels, clusters: int, medoids: Labels, each: Floats
) -> dict[str, Any]:
    """What each cluster is: columns of `clusters.parquet`, and ``profiles`` (clusters, documents)."""
    members = [source.living[labels == c].tolist() for c in range(clusters)]
    ids = source.living[medoids]
    names = naming.names(members, ids.tolist(), naming.words(source.latents), knobs.name_words)
    inside = labels >= 0
    size = quality.sizes(labels, clusters)
    return {
        "cluster": np.arange(clusters),
        "size": size,
        "medoid": ids,
        "name": names,
        "silhouette": np.bincount(labels[inside], each[inside], clusters) / size,
        "profiles": profiles.cluster_profiles(source.profile, labels, clusters),
    }


def _scores(lit: Sparse, kept: Labels, clusters: int, knobs: Cluster) -> dict[str, Any]:
    """What each cluster is worth: the other columns. Only latents that interpret's filters ``kept`` count."""
    scores = selection.cluster_scores(lit, kept, clusters, knobs.selection.threshold)
    return {"kept": scores.pop("size").astype(np.int64), **scores}


def _profiles(source: Source, knobs: Cluster, profile: Sparse, folder: Path) -> None:
    """Write `profiles.parquet`, `documents.parquet` and `correlated.parquet`."""
    cluster = np.repeat(np.arange(profile.shape[0]), np.diff(profile.indptr))
    columns = {"cluster": cluster, "document": source.documents[profile.indices], "mean": profile.data}
    parquet.write(folder / "profiles.parquet", columns, export.PROFILES)
    top = profiles.top_documents(profile, TOP_DOCUMENTS)
    document = source.documents[top["column"]]
    parquet.write(
        folder / "documents.parquet",
        {
            **top,
            "document": document,
            "title": [source.titles[d] for d in document],
            "label": [source.labels[d] for d in document],
        },
        export.DOCUMENTS,
    )
    pairs = profiles.correlated(profile, knobs.correlated)
    parquet.write(folder / "correlated.parquet", pairs, export.CORRELATED)


def _map(
    source: Source, labels: Labels, places: Floats, families: dict[str, Any], chosen: list[int], folder: Path
) -> None:
    """Write `map.png` and `map.html`, the clearest families in colour: silhouette × ln(size)."""
    clear = np.nan_to_num(families["silhouette"]) * np.log(families["size"])
    order = np.lexsort((families["cluster"], -clear))[:COLOURED]
    groups = [np.flatnonzero(labels == c) for c in order]
    titles = [f"{families['name'][c]}  ({families['size'][c]})" for c in order]
    stars = places[np.isin(source.living, chosen)]
    files.write_bytes(folder / "map.png", pictures.scatter(places, groups, titles, "other latents", stars))
    text = pages.render(
        source.latents.meta, source.living, labels, places, families, order.tolist(), _notes(source), chosen
    )
    files.write_text(folder / "map.html", text)


def _notes(source: Source) -> dict[int, str]:
    """Latent -> its best explanation."""
    table = source.latents.table("explanations")
    found = explained(table.to_pylist() if table else [])
    return {latent: rows[0]["text"] or "" for latent, rows in found.items()}


def _latents(source: Source, labels: Labels, medoids: Labels, each: Floats, places: Floats, folder: Path) -> None:
    """Write `latents.parquet`: a row a latent, the dead ones too."""
    latents = len(source.dead)
    columns: dict[str, Any] = {name: np.full(latents, np.nan) for name in ("silhouette", "x", "y")}
    columns |= {"latent": np.arange(latents), "cluster": np.full(latents, DEAD), "medoid": np.zeros(latents, bool)}
    for name, values in (("cluster", labels), ("silhouette", each), ("x", places[:, 0]), ("y", places[:, 1])):
        columns[name][source.living] = values
    columns["medoid"][source.living[medoids]] = True
    parquet.write(folder / "latents.parquet", columns, export.LATENTS)


def _documents(source: Source, knobs: Cluster, seed: int, folder: Path) -> None:
    """Write the map of the documents by their mean codes, as a table and a picture coloured by label."""
    count = len(source.documents)
    shown = np.sort(np.random.default_rng([seed, 2]).permutation(count)[:MAPPED])
    vectors = unit_sparse(csr_array(unit_sparse(source.profile).T.tocsr()[shown])).toarray()
    places = maps.layout(vectors, None, knobs.map, seed)
    document = source.documents[shown]
    labels = [source.labels[d] for d in document]
    parquet.write(
        folder / "document_map.parquet",
        {
            "document": document,
            "title": [source.titles[d] for d in document],
            "label": labels,
            "x": places[:, 0],
            "y": places[:, 1],
        },
        export.DOCUMENT_MAP,
    )
    groups, names = pictures.label_groups(labels, COLOURED)
    titles = [f"{name}  ({len(group)})" for name, group in zip(names, groups, strict=True)]
    files.write_bytes(folder / "documents.png", pictures.scatter(places, groups, titles, "other documents", places[:0]))


def _heatmaps(source: Source, knobs: Cluster, families: dict[str, Any], folder: Path) -> None:
    """Write the heatmaps of the clusters with the best scores, and of their medoids, over documents by label."""
    labels = [source.labels[d] for d in source.documents]
    order = sorted(range(len(labels)), key=lambda place: (labels[place] or "", place))
    names = [labels[place] for place in order]
    best = np.sort(np.lexsort((families["cluster"], -families["composite"]))[: knobs.heatmap])
    if len(best) == 0:
        return
    rows = [f"{families['name'][c]}  ({families['size'][c]})" for c in best]
    values = families["profiles"][best].toarray()[:, order]
    files.write_bytes(
        folder / "clusters.png", pictures.heatmap(values, rows, names, "mean code, share of the cluster's largest")
    )
    medoid = families["medoid"][best]
    values = source.profile[np.searchsorted(source.living, medoid)].toarray()[:, order]
    rows = [f"{latent}: {families['name'][c]}" for latent, c in zip(medoid.tolist(), best, strict=True)]
    files.write_bytes(
        folder / "latents.png", pictures.heatmap(values, rows, names, "mean code, share of the latent's largest")
    )
