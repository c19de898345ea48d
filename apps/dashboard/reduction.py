"""Tab: show the vectors in two dimensions, and how many dimensions they need."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from apps.dashboard import artifacts, charts, measures
from apps.dashboard.view import View
from apps.dashboard.widgets import choice, csv, one_of, slider, whole

MOST = 0.95  # of the variance
SMALL = 20  # vectors, of which there must be as many to lay them out


def show(view: View) -> None:
    sample = view.sample()
    x, rows = sample.x, sample.rows
    if len(x) < SMALL:
        st.info(f"{len(x)} vectors are too few to lay out; there must be {SMALL}.")
        return

    view.tell_sample()
    left, right = st.columns([1, 3])
    with left:
        method = one_of("Method", ["PCA", "t-SNE", "UMAP"], "method")
        options = _options(method)
        colours = ["label", "norm", "density", "k-means", "latent"]
        # A label of a document says little of one token: its points would be confetti.
        by_label = view.unit == artifacts.DOCUMENT and rows["label"].nunique() > 1
        by = choice("Colour", colours, "label" if by_label else "norm", "colour")
        frame = rows[["document", "title", "label", "text"]].assign(norm=rows["norm"].astype(float))
        if by != "norm":
            frame[by] = _colour(view, by)

    place = view.of_sample(
        lambda: measures.reduced(x, method, view.seed, **options), "layout", method, *options.values()
    )
    frame["x"], frame["y"] = place[:, 0].astype(float), place[:, 1].astype(float)
    with right:
        axes = measures.COMPONENTS if method == "PCA" else (f"{method}, first", f"{method}, second")
        st.altair_chart(charts.points(frame, by, axes, log=by == "latent"))
        csv(frame, "reduction")

    st.subheader("How many dimensions")
    count = slider("Components", 2, min(200, *x.shape), 50, "components")
    _, table = view.of_sample(lambda: measures.principal(x, min(200, *x.shape)), "principal")
    enough = table.index[table["cumulative"] >= MOST]
    needed = f"{enough[0] + 1} components" if len(enough) else f"more than {len(table)} components"
    st.caption(f"{needed} explain {MOST:.0%} of the variance of {len(x):,} vectors of {x.shape[1]} numbers.")
    st.altair_chart(charts.scree(table.head(count), MOST))
    csv(table, "variance")


def _options(method: str) -> dict[str, float]:
    """Ask for the options of a method."""
    if method == "t-SNE":
        return {"perplexity": slider("Perplexity", 5, 50, 30, "perplexity")}
    if method == "UMAP":
        return {
            "neighbours": slider("Neighbours", 5, 50, 15, "neighbours"),
            "spread": slider("Least distance", 0.0, 1.0, 0.1, "spread"),
        }
    return {}


def _colour(view: View, by: str) -> Sequence[Any] | np.ndarray:
    """Return what the vectors are coloured by, a value for each; ask for what that needs."""
    sample = view.sample()
    x = sample.x
    if by == "label":
        return charts.few(sample.rows["label"].tolist())
    if by == "density":
        near = slider("Nearest vectors", 2, 30, 5, "near")
        return view.of_sample(lambda: measures.density(x, near), "density", near)
    if by == "k-means":
        k = slider("Clusters", 2, 30, 5, "colour k")
        clusters = view.of_sample(lambda: measures.kmeans(x, k, view.seed, True)[0], "kmeans", k, True)
        return [f"{cluster}" for cluster in clusters]
    return _codes(view, x)


def _codes(view: View, x: artifacts.Floats) -> np.ndarray:
    """Ask for a latent, and return its code on each vector."""
    sae = view.of_files(lambda: view.project.sae(view.layer), "sae")
    latent = whole("Latent", sae.latents - 1, 0, "colour latent")
    return view.of_sample(lambda: artifacts.one_code(sae, x, latent), "codes", latent)
