"""Tab: how long the documents are, what words they use, and how one measure goes with another."""

import pandas as pd
import streamlit as st

from apps.dashboard import artifacts, charts, measures
from apps.dashboard.view import View
from apps.dashboard.widgets import choice, csv, slider, table

MEASURES = ["characters", "words", "distinct words", "lexical density"]


def measured(view: View) -> pd.DataFrame:
    """Return the sampled documents with their lengths, and the norm of their vector where they have one."""
    documents = artifacts.documents(view.project, view.most, view.seed)
    documents = pd.concat([documents, measures.lengths(list(documents["text"]))], axis=1)
    norms = artifacts.norms(view.project, view.layer, documents["document"].tolist())
    return documents.assign(norm=documents["document"].map(norms))


def show(view: View) -> None:
    frame = view.of_files(lambda: measured(view), "documents", view.most, view.seed)
    if not frame["characters"].any():
        st.info("These documents have no text: they are vectors alone. The other tabs show them.")
        return

    names = [*MEASURES, "norm"]
    figures = st.columns(4)
    figures[0].metric("documents looked at", f"{len(frame):,}", help="a document is a line or a section of the text")
    figures[1].metric("words", f"{frame['words'].sum():,}")
    figures[2].metric("median words", f"{frame['words'].median():,.0f}")
    figures[3].metric("labels", f"{frame['label'].nunique():,}")

    st.caption(
        f"{frame['norm'].notna().sum():,} of these documents have stored vectors; extract took rows of these alone."
    )
    left, right = st.columns(2)
    with left:
        _spread(frame, names)
    with right:
        _relation(frame, names)
    csv(frame.drop(columns="text"), "documents")

    _words(view, frame)
    if frame["label"].nunique() > 1:
        st.subheader("By label")
        groups = frame.groupby("label")
        by_label = groups[names].mean().round(3).assign(documents=groups.size()).reset_index()
        table(by_label.sort_values("documents", ascending=False), "labels")


def _spread(frame: pd.DataFrame, names: list[str]) -> None:
    """Show a histogram of one of the measures ``names``."""
    st.subheader("How they are spread")
    measure = choice("Measure", names, "words", "measure")
    bins = slider("Bars", 5, 100, 40, "document bins")
    st.altair_chart(charts.histogram(measures.histogram({measure: frame[measure].to_numpy(float)}, bins), measure))


def _relation(frame: pd.DataFrame, names: list[str]) -> None:
    """Show two of the measures ``names`` against each other."""
    st.subheader("How one goes with another")
    left, right = st.columns(2)
    with left:
        x = choice("Along", names, "words", "along")
    with right:
        y = choice("Mean of", names, "lexical density", "mean of")
    window = slider("Documents in a mean", 3, min(400, len(frame)), 60, "window")

    rows = frame[[x, y, "title"]].loc[:, lambda f: ~f.columns.duplicated()].dropna(subset=[x, y])
    positive = rows[rows[x] > 0] if x != "norm" else rows  # the axis of the others is logarithmic
    means = measures.trend(positive[x].to_numpy(float), positive[y].to_numpy(float), window)
    st.altair_chart(charts.with_trend(positive, means, x, y, log_x=x in MEASURES[:3]))


def _words(view: View, frame: pd.DataFrame) -> None:
    """Show the commonest words of the documents, and how the count of a word falls with its rank."""
    words = view.of_files(lambda: measures.vocabulary(list(frame["text"])), "words", view.most, view.seed)
    left, right = st.columns(2)
    with left:
        st.subheader("The commonest words")
        count = slider("Words", 5, 60, 25, "words")
        share = slider("In at most this share of the documents", 0.02, 1.0, 0.3, "held")
        common = words[words["share of documents"] <= share].head(count)
        st.altair_chart(charts.bars(common, "count", "word"))
    with right:
        st.subheader("Rank and frequency")
        st.caption("In text the count falls about as one over the rank (Zipf): a straight line, slope -1.")
        st.altair_chart(charts.line(words.iloc[_spaced(len(words))], "rank", "count", log_x=True, log_y=True))
        csv(words, "words")


def _spaced(count: int, most: int = 300) -> list[int]:
    """Return at most ``most`` + 1 places from 0 to count - 1, evenly spaced on a logarithmic axis."""
    return sorted({min(count - 1, round(count ** (place / most)) - 1) for place in range(most + 1)}) if count else []
