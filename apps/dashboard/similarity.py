"""Tab: show how alike the vectors are, and their codes beside each other."""

import numpy as np
import pandas as pd
import streamlit as st

from apps.dashboard import artifacts, charts, measures
from apps.dashboard.artifacts import Floats
from apps.dashboard.view import View
from apps.dashboard.widgets import csv, slider, switch, table

SMALL = 3  # vectors, of which there must be as many to compare them


def show(view: View) -> None:
    sample = view.sample()
    if len(sample.x) < SMALL:
        st.info(f"{len(sample.x)} vectors are too few to compare; there must be {SMALL}.")
        return

    view.tell_sample()
    centred = switch("Without the mean of all vectors", True, "centred", "which most activations share")
    x = sample.x - sample.x.mean(0) if centred else sample.x
    _pairs(view, x, centred)
    _nearest(view, x, centred)
    _codes(view)


def _pairs(view: View, x: Floats, centred: bool) -> None:
    """Show the cosine of pairs of vectors, and how it falls with their distance."""
    pairs = view.of_sample(lambda: measures.pairs(x, view.seed), "pairs", centred)
    left, right = st.columns(2)
    with left:
        st.subheader("Cosine of two vectors")
        bins = slider("Bars", 10, 120, 60, "cosine bins")
        both = {"these vectors": pairs["cosine"].to_numpy(), "each column shuffled": pairs["chance"].to_numpy()}
        counted = measures.histogram(both, bins)
        st.altair_chart(charts.histogram(counted, f"cosine, {len(pairs):,} pairs"))
        csv(counted, "cosines")
    with right:
        st.subheader("Cosine by distance")
        steps = slider("Steps", 5, 50, 20, "decay")
        by_distance = measures.decay(pairs, steps)
        st.altair_chart(charts.band(by_distance, "distance", "cosine"))
        csv(by_distance, "cosine by distance")


def _nearest(view: View, x: Floats, centred: bool) -> None:
    """Show the pairs of vectors with the largest cosine, and their texts."""
    sample = view.sample()
    st.subheader("The nearest pairs")
    left, right = st.columns([2, 1])
    with left:
        most = slider("Pairs", 1, 50, 8, "pairs")
    with right:
        apart = switch("Of two documents", True, "apart")

    documents = sample.rows["document"].to_numpy()
    near = view.of_sample(lambda: measures.closest(x, documents, most, apart), "closest", centred, most, apart)
    texts = {side: sample.rows["text"].to_numpy()[near[side]] for side in ("i", "j")}
    titles = {side: sample.rows["title"].to_numpy()[near[side]] for side in ("i", "j")}
    shown = {
        "cosine": near["cosine"],
        "one": texts["i"],
        "other": texts["j"],
        "title": titles["i"],
        "other title": titles["j"],
    }
    table(pd.DataFrame(shown), "nearest pairs")


def _codes(view: View) -> None:
    """Show the codes of some vectors, with the latents in the order of the first vector's codes."""
    st.subheader("Codes beside each other")
    if not view.project.has_sae(view.layer):
        st.info("The stage train has not run for this layer.")
        return

    sample = view.sample()
    left, right = st.columns(2)
    with left:
        most = slider("Vectors", 2, min(12, len(sample.x)), 6, "code rows")
    picked = np.random.default_rng(view.seed).permutation(len(sample.x))[:most]
    codes = view.of_sample(lambda: artifacts.codes(view.project.sae(view.layer), sample.x[picked]), "some codes", most)
    order, ranked = measures.reranked(codes)
    if len(order) < 2:
        st.info("Fewer than two latents are active on these vectors.")
        return

    with right:
        ranks = slider("Latents, by the first vector's codes", 2, len(order), 80, "ranks")
    names = [f"{place}: {artifacts.excerpt(sample.rows['text'][number], 60)}" for place, number in enumerate(picked)]
    frame = pd.DataFrame(
        {
            "vector": np.repeat(names, ranks),
            "rank": np.tile(np.arange(1, ranks + 1), most),
            "latent": np.tile(order[:ranks], most),
            "code": ranked[:, :ranks].ravel().astype(float),
        }
    )
    st.altair_chart(charts.line(frame, "rank", "code", "vector", height=420))
    for column, name in zip(st.columns(2) * len(names), names, strict=False):
        of_vector = frame[frame["vector"] == name]
        column.altair_chart(charts.area(of_vector, "rank", "code", name, float(frame["code"].max())))
    csv(frame, "codes")
    st.caption(f"Over all {len(order)} latents that are active on one of them; numbers are those of the lines above.")

    alike = view.of_sample(lambda: measures.alike(codes), "alike", most)
    left, right = st.columns(2)
    with left:
        st.altair_chart(charts.heatmap(alike, "kendall"))
    with right:
        st.altair_chart(charts.heatmap(alike, "cosine"))
    csv(alike, "likeness of codes")
