"""Lay out the page. `make dashboard` runs it with the folders `data` and `reports` as its arguments."""

import sys
from pathlib import Path

import streamlit as st

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:  # streamlit puts this file's folder there, not the project's
    sys.path.insert(0, ROOT)

from apps.dashboard import clustering, documents, latents, reduction, similarity, text, training  # noqa: E402
from apps.dashboard.artifacts import Project  # noqa: E402
from apps.dashboard.view import View  # noqa: E402
from apps.dashboard.widgets import choice, keep, one_of, slider, switch, whole  # noqa: E402
from strata.run.door import BadInput  # noqa: E402

TABS = {
    "Latents": latents.show,
    "Documents": documents.show,
    "Dimensions": reduction.show,
    "Clustering": clustering.show,
    "Similarity": similarity.show,
    "Training": training.show,
    "Try a text": text.show,
}


def sidebar(project: Project) -> View:
    """Ask what to look at."""
    with st.sidebar:
        st.title("Strata")
        layers = project.layers()
        layer = choice("Layer", layers, layers[-1], "layer")
        units = project.units(layer)
        unit = units[0] if len(units) == 1 else one_of("A vector is of a", units, "unit")
        meta = project.activations(layer).meta
        most = slider("Vectors and documents looked at, at most", 20, min(10_000, meta["rows"]), 2000, "most", 10)
        inliers = switch("Without outliers", True, "inliers", "norm over 3 × the training rows' median")
        seed = whole("Seed of all that is drawn", 10**6, 0, "seed")

    view = View(project, project.stamp(), layer, unit, most, inliers, seed)
    with st.sidebar:
        sample = view.sample()
        st.caption(f"{meta['model']['name']} · {meta['hook']} · {meta['rows']:,} rows of {meta['width']} numbers")
        left = f", {sample.outliers} outliers left out" if inliers else ""
        st.caption(f"{len(sample.x):,} {unit}s looked at{left}")
    return view


def main() -> None:
    """Draw the sidebar, and the tab that is open. A BadInput becomes a red sentence on the page."""
    st.set_page_config("Strata", layout="wide")
    keep()
    try:
        view = sidebar(Project(*map(Path, sys.argv[1:3])))
    except BadInput as refusal:
        st.error(str(refusal))
        return

    for tab, show in zip(st.tabs(list(TABS), key="tab", bind="query-params"), TABS.values(), strict=True):
        if tab.open:
            with tab:
                try:
                    show(view)
                except BadInput as refusal:
                    st.error(str(refusal))


main()
