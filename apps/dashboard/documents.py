"""Tab: how long the documents are, what words they use, how one measure goes with another."""

import pandas as pd
import streamlit as st

from apps.dashboard import artifacts, charts, measures
from apps.dashboard.view import View
from apps.dashboard.widgets import choice, csv, slider, table

MEASURES = ["characters", "words", "distinct words", "lexical density"]


def measured(view: View) -> pd.DataFrame:
    """The sampled documents with their lengths, and the norm of their vector where they have one."""
    found = artifacts.documents(view.project, view.most, view.seed)
    found = pd.concat([found, measures.lengths(list(found["text"]))], axis=1)
    norms = artifacts.norms(view.project, view.layer, found["document"].tolist())
    return found.assign(norm=found["document"].map(norms))


def show(view: View) -> None:
    frame = view.of_files(lambda: measured(view), "documents", view.most, view.seed)
    if not frame["characters"].any():
        st.info("These documents have no text: they are vectors alone. The other tabs show them.")
        return
    names = [*MEASURES, "norm"]
    figures = st.columns(4)
    figures[0].metric("documents looked at", f"{len(frame):,}")
    figures[1].metric("words", f"{frame['words'].sum():,}")
    figures[2].metric("median words", f"{frame['words'].median():,.0f}")
    figures[3].metric("labels", f"{frame['label'].nunique():,}")

    left, right = st.columns(2)
    with left:
        st.subheader("How they are spread")
        measure = choice("Measure", names, "words", "measure")
        bins = slider("Bars", 5, 100, 40, "document bins")
        st.altair_chart(charts.histogram(measures.histogram({measure: frame[measure].to_numpy(float)}, bins), measure))
    with right:
        st.subheader("How one goes with another")
        one, other = st.columns(2)
        with one:
            x = choice("Along", names, "words", "along")
        with other:
            y = choice("Mean of", names, "lexical density", "mean of")
        window = slider("Documents in a mean", 3, min(400, len(frame)), 60, "window")
        rows = frame[[x, y, "title"]].loc[:, lambda f: ~f.columns.duplicated()].dropna(subset=[x, y])
        kept = rows[rows[x] > 0] if x != "norm" else rows
        means = measures.trend(kept[x].to_numpy(float), kept[y].to_numpy(float), window)
        st.altair_chart(charts.with_trend(kept, means, x, y, log_x=x in MEASURES[:3]))
    csv(frame.drop(columns="text"), "documents")

    words = view.of_files(lambda: measures.vocabulary(list(frame["text"])), "words", view.most, view.seed)
    left, right = st.columns(2)
    with left:
        st.subheader("The commonest words")
        top = slider("Words", 5, 60, 25, "words")
        held = slider("In at most this share of the documents", 0.02, 1.0, 0.3, "held")
        common = words[words["share of documents"] <= held].head(top)
        st.altair_chart(charts.bars(common, "count", "word"))
    with right:
        st.subheader("Rank and frequency")
        st.caption("In text the count falls about as one over the rank (Zipf): a straight line, slope -1.")
        st.altair_chart(charts.line(words.iloc[_spaced(len(words))], "rank", "count", log_x=True, log_y=True))
        csv(words, "words")

    if frame["label"].nunique() > 1:
        st.subheader("By label")
        groups = frame.groupby("label")
        by_label = groups[names].mean().round(3).assign(documents=groups.size()).reset_index()
        table(by_label.sort_values("documents", ascending=False), "labels")


def _spaced(count: int, most: int = 300) -> list[int]:
    """Places from 0 to count - 1, evenly spaced on a logarithmic axis."""
    return sorted({min(count - 1, round(count ** (place / most)) - 1) for place in range(most + 1)}) if count else []
