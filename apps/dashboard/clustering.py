"""Tab: k-means on the vectors, and the pipeline's own families of latents."""

from typing import Any

import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from apps.dashboard import charts, measures
from apps.dashboard.view import View
from apps.dashboard.widgets import choice, csv, slider, switch, table
from strata.families.cluster import COLOURED
from strata.families.pictures import clearest
from strata.families.read import DEAD, Clusters

SMALL = 10  # vectors, of which there must be as many to cluster them


def show(view: View) -> None:
    st.subheader("Vectors")
    sample = view.sample()
    if len(sample.x) < SMALL:
        st.info(f"{len(sample.x)} vectors are too few to cluster; there must be {SMALL}.")
    else:
        view.tell_sample()
        _vectors(view)
    st.divider()
    st.subheader("Families of latents")
    clusters = view.project.clusters(view.layer)
    if clusters is None:
        st.info("The stage cluster has not run for this layer (`cluster.run`).")
    else:
        _families(view, clusters)


def _vectors(view: View) -> None:
    """Cluster the sampled vectors, and show how good the clusters are and what is in them."""
    sample = view.sample()
    x, rows = sample.x, sample.rows
    left, right = st.columns([1, 2])
    with left:
        k = slider("Clusters", 2, min(30, len(x) - 1), 5, "k")
        even = switch("Every column of the same spread", True, "scaled")
        clusters, distance = view.of_sample(lambda: measures.kmeans(x, k, view.seed, even), "kmeans both", k, even)
        _quality(view, clusters, k, even)
        sizes = pd.Series(clusters).value_counts().sort_index().rename_axis("cluster").reset_index(name="vectors")
        st.altair_chart(charts.bars(sizes.astype({"cluster": str}), "vectors", "cluster"))

    frame = rows.assign(
        norm=rows["norm"].astype(float), cluster=[str(c) for c in clusters], distance=distance.astype(float)
    )
    with right:
        place, _ = view.of_sample(lambda: measures.principal(x, 2), "principal two")
        drawn = frame.drop(columns="row").assign(x=place[:, 0], y=place[:, 1])
        st.altair_chart(charts.points(drawn, "cluster", measures.COMPONENTS))

    most = slider("Vectors shown of each cluster, the nearest to its centre first", 1, 20, 3, "members")
    near = frame.sort_values(["distance", "row"]).groupby("cluster").head(most).sort_values(["cluster", "distance"])
    table(near[["cluster", "distance", "text", "title", "label"]])
    csv(frame, "clusters of vectors")


def _quality(view: View, clusters: NDArray[Any], k: int, even: bool) -> None:
    """Show how far apart the clusters of the sample are, and how well they agree with its labels."""
    sample = view.sample()
    x, labels = measures.scaled(sample.x) if even else sample.x, sample.rows["label"].tolist()
    silhouette = view.of_sample(lambda: measures.silhouette(x, clusters, view.seed), "silhouette", k, even)
    agreement = view.of_sample(lambda: measures.agreement(clusters, labels, view.seed), "agreement", k, even)

    left, right = st.columns(2)
    left.metric("silhouette", "–" if silhouette is None else f"{silhouette:.3f}", help="1: far apart; 0: they touch")
    if agreement:
        score, chance = agreement
        right.metric("agrees with labels", f"{score:.3f}", help="adjusted mutual information: 1 the same, 0 chance")
        right.caption(f"labels shuffled: {chance:.3f}")


def _families(view: View, clusters: Clusters) -> None:
    """Show the families of latents that the pipeline found: their map, their table, the members of one."""
    latents, families = clusters.table("latents").to_pandas(), clusters.table("clusters").to_pandas()
    if families.empty:
        st.info("No latent of this layer lives, so there is no family.")
        return

    first = clearest(families)  # as map.html colours them
    most = slider("Families with a colour of their own", 1, min(20, len(families)), COLOURED, "families")
    living = latents[latents["cluster"] != DEAD]
    names = {int(row["cluster"]): f"{int(row['cluster'])} {row['name']}" for row in families.to_dict("records")}
    coloured = {int(families["cluster"][place]): names[int(families["cluster"][place])] for place in first[:most]}
    shown = living.assign(family=[coloured.get(int(c), charts.OTHER) for c in living["cluster"]])
    left, right = st.columns([2, 1])
    with left:
        drawn = shown[["latent", "family", "x", "y"]]
        st.altair_chart(charts.points(drawn, "family", order=list(coloured.values()), height=640))
    with right:
        st.caption("All families, the clearest first")
        table(families.iloc[first][["cluster", "size", "name", "medoid"]], "families", 14)

    chosen = choice("Members of", list(names), next(iter(names)), "family", names.__getitem__)
    members = living[living["cluster"] == chosen][["latent", "silhouette", "medoid"]]
    interpreted = view.project.latents(view.layer)
    if interpreted is not None:
        latent_names = view.of_files(interpreted.names, "names", view.project.named())
        members = members.assign(name=[latent_names.get(int(latent)) for latent in members["latent"]])
    table(members.assign(latent=[view.link(int(latent)) for latent in members["latent"]]), "members of a family")
