"""Lay out the page. `make dashboard` runs it with the folders `data` and `reports` as its arguments."""

import sys
from pathlib import Path

import streamlit as st

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:  # streamlit puts this file's folder there, not the project's
    sys.path.insert(0, ROOT)

from apps.dashboard.artifacts import Project  # noqa: E402
from apps.dashboard.tabs import SAMPLED, TABS  # noqa: E402
from apps.dashboard.view import MOST, View  # noqa: E402
from apps.dashboard.widgets import choice, keep, one_of, slider, switch, whole  # noqa: E402
from strata.run.door import BadInput  # noqa: E402

SIDEBAR = 250  # pixels
# Streamlit leaves wide margins, which a table beside its detail needs.
ROOM = """<style>
[data-testid=stMainBlockContainer] { padding: 3rem clamp(1rem, 2vw, 3rem) }
</style>"""


def sidebar(project: Project, sampled: bool) -> View:
    """Ask what to look at. ``sampled``: the tab that is open looks at a sample of vectors or documents."""
    with st.sidebar:
        st.title("Strata")
        layers = project.layers()
        layer = choice("Layer", layers, layers[-1], "layer")
        meta, units = project.activations(layer).meta, project.units(layer)
        st.caption(f"{meta['model']['name']} · {meta['hook']} · {meta['rows']:,} rows of {meta['width']} numbers")
        if not sampled:
            return View(project, project.stamp(), layer, units[0])

        unit = units[0] if len(units) == 1 else one_of("A vector is of a", units, "unit")
        most = slider("Vectors and documents looked at, at most", 20, min(10_000, meta["rows"]), MOST, "most", 10)
        inliers = switch("Without outliers", True, "inliers", "norm over 3 × the training rows' median")
        seed = whole("Seed of all that is drawn", 10**6, 0, "seed")
    return View(project, project.stamp(), layer, unit, most, inliers, seed)


def main() -> None:
    """Draw the sidebar, and the tab that is open. A BadInput becomes a red sentence on the page."""
    st.set_page_config("Strata", layout="wide", initial_sidebar_state=SIDEBAR)
    st.html(ROOM)
    keep()
    tabs = zip(TABS, st.tabs(list(TABS), key="tab", bind="query-params"), strict=True)
    name, tab = next((name, tab) for name, tab in tabs if tab.open)
    with tab:
        try:
            TABS[name](sidebar(Project(*map(Path, sys.argv[1:3])), name in SAMPLED))
        except BadInput as refusal:
            st.error(str(refusal))


main()
