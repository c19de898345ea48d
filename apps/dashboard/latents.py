"""Tab: a layer's latents, to search; and all that is known of one."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from apps.dashboard import artifacts, charts
from apps.dashboard.artifacts import TOKEN
from apps.dashboard.marks import marks
from apps.dashboard.view import View
from apps.dashboard.widgets import choice, csv, kept, one_of, slider
from apps.serve.explainer import explanations
from strata.interpretation.read import Latents
from strata.pages.readable import SCORES, number, percent, visible

LEAST, ANY = -6.0, -0.5  # what leaves nothing out: of a share's log10, and of how far a score is above chance
KINDS = {
    "top": "strongest",
    "decile": "from strong to weak",
    "random": "at random",
    "near": "near misses",
    "zero": "silent",
}
SHOWN = ["latent", "explanation", "tokens", "score", "chance", "density", "mean", "max", "importance", "state"]
ORDERS = {"importance": False, "density": False, "mean": False, "max": False, "score": False, "latent": True}


def overview(latents: Latents) -> pd.DataFrame:
    """A line a latent: its statistics, strongest tokens, best explanation and how far above chance it tells."""
    columns = [
        "latent",
        "density",
        "mean",
        "max",
        "importance",
        "documents",
        "entropy_share",
        "dead",
        "kept",
        "dropped",
    ]
    statistics, tokens = latents.table("statistics", columns), latents.table("tokens", ["latent", "rank", "piece"])
    assert statistics is not None and tokens is not None, "interpret always writes them"
    frame, first = statistics.to_pandas(), tokens.to_pandas()
    first = first[first["rank"] < 3].assign(piece=lambda rows: rows["piece"].map(visible))
    frame["tokens"] = frame["latent"].map(first.groupby("latent")["piece"].agg(" ".join)).fillna("")
    best = {latent: rows[0] for latent, rows in explanations(latents).items()}
    frame["explanation"] = [best.get(latent, {}).get("text") or "" for latent in frame["latent"]]
    frame["score"] = [best.get(latent, {}).get("balanced_accuracy", np.nan) for latent in frame["latent"]]
    frame["chance"] = [best.get(latent, {}).get("balanced_accuracy_chance", np.nan) for latent in frame["latent"]]
    state = np.where(
        frame["dead"], "dead", np.where(frame["kept"], "kept", frame["dropped"].fillna("").str.replace("_", " "))
    )
    return frame.assign(state=state).drop(columns=["dead", "kept", "dropped"])


def show(view: View) -> None:
    latents = view.project.latents(view.layer)
    if latents is None:
        st.info("The stage interpret has not run for this layer (`interpret.run`).")
        return
    frame = view.of_files(lambda: overview(latents), "overview")
    left, middle, right = st.columns([3, 2, 2])
    states = sorted(frame["state"].unique(), key=lambda state: (state != "kept", state))
    with left:
        words = st.text_input("Search explanations, tokens and numbers", key=kept("search", ""), placeholder="e.g. war")
        low, high = slider("Fires on this share of rows (log10)", LEAST, 0.0, (LEAST, 0.0), "density", 0.1)
    with middle:
        first = states[:1] if states[0] == "kept" else [state for state in states if state != "dead"]
        state = st.multiselect("State", states, key=kept("states", first, set(states).issuperset))
    with right:
        order = choice("Order by", list(ORDERS), "importance", "order")
        told = slider("Score above chance by at least", ANY, 0.5, ANY, "told", 0.05)
    found = matching(frame, words, state, (low, high), told).sort_values(
        [order, "latent"], ascending=[ORDERS[order], True]
    )
    middle.metric("latents found", f"{len(found):,}")
    chosen = st.dataframe(
        found, hide_index=True, height=300, on_select="rerun", selection_mode="single-row", key="latent_rows",
        column_order=SHOWN,
    )  # fmt: skip
    csv(found, "latents")
    rows = chosen["selection"]["rows"]  # pyright: ignore[reportIndexIssue]
    first = int(found["latent"].iloc[rows[0] if rows and rows[0] < len(found) else 0]) if len(found) else 0
    st.divider()
    latent = st.number_input("Latent (or choose a line above)", 0, len(frame) - 1, first)
    _one(view, latents, int(latent))


def matching(
    frame: pd.DataFrame, words: str, states: list[str], density: tuple[float, float], above: float
) -> pd.DataFrame:
    """The latents that hold all of ``words``, have one of ``states``, fire on a share of rows between two powers of
    ten, and whose explanation tells better than chance by ``above``; LEAST and ANY leave nothing out."""
    text = (frame["explanation"] + " " + frame["tokens"] + " " + frame["latent"].astype(str)).str.lower()
    found = frame["state"].isin(states)
    for word in words.lower().split():
        found &= text.str.contains(word, regex=False)
    with np.errstate(divide="ignore"):
        log = np.log10(frame["density"])
    found &= ((log >= density[0]) | (density[0] <= LEAST)) & (log <= density[1])
    if above > ANY:
        found &= frame["score"] - frame["chance"].fillna(0.5) >= above
    return frame[found]


def _one(view: View, latents: Latents, latent: int) -> None:
    """All that interpret and cluster know of a latent."""

    def rows(name: str) -> pd.DataFrame:
        found = latents.table(name, filters=[("latent", "=", latent)])
        return pd.DataFrame() if found is None else found.to_pandas().drop(columns="latent")

    facts = rows("statistics").iloc[0]
    if facts["dead"]:
        st.info(f"Latent {latent} is dead: nothing in the corpus makes it fire.")
        return
    said = view.of_files(lambda: explanations(latents), "explanations").get(latent, [])
    st.markdown(f"### Latent {latent}")
    for note in said:
        scores = [
            f"{name} {number(note[key])} (chance {number(note[f'{key}_chance'])})"
            for key, name in SCORES.items()
            if note[key] is not None
        ]
        st.text("\n".join([note["text"] or "no explanation", " · ".join([f"by {note['source']}", *scores])]))
    unit = latents.meta["unit"]
    values = {
        f"of {unit}s": percent(facts["density"]),
        "mean code": number(facts["mean"]),
        "largest": number(float(facts["max"])),
        "documents": number(int(facts["documents"])),
        "entropy": number(facts["entropy_share"]),
    }
    for place, (name, value) in zip(st.columns(len(values)), values.items(), strict=True):
        place.metric(name, value)

    examples = rows("examples")
    examples = examples.assign(group=examples["kind"].str.partition("-")[0])
    left, right = st.columns([3, 2])
    with left:
        kinds = [kind for kind in KINDS if (examples["group"] == kind).any()]
        kind = one_of("Contexts", kinds, "contexts", KINDS.__getitem__)
        some = examples[examples["group"] == kind]
        some = some.head(slider("How many", 1, len(some), 8, "context number"))
        for example in some.to_dict("records"):
            strength = number(float(example["value"])) if kind != "zero" else "0"
            values = list(example["values"]) if unit == TOKEN else [0.0]  # of a whole document there is no part to mark
            head = f"{strength} · {example['title'] or ''}"
            st.html(marks(example["pieces"], values, float(facts["max"]), head))
        csv(_written(examples), f"contexts of {latent}")
    with right:
        st.caption("How often it takes a value")
        st.altair_chart(charts.histogram(_bars(facts, latents.meta["histogram_edges"]), "code", log=True))
        clusters = view.project.clusters(view.layer)
        if clusters is not None:
            places = clusters.table("latents").to_pandas()
            places = places[places["x"].notna()]
            here = places["latent"] == latent
            family = int(places.loc[here, "cluster"].iloc[0]) if here.any() else None
            places = places.assign(this=np.where(here, f"latent {latent}", charts.OTHER))
            st.caption("Not on the map: cluster ran on other latents" if family is None else f"Of family {family}")
            st.altair_chart(
                charts.points(
                    places.sort_values("this", ascending=False)[["latent", "cluster", "x", "y", "this"]], "this"
                )
            )
    _tables(rows, view, latents)


def _tables(rows: Any, view: View, latents: Latents) -> None:
    left, middle, right = st.columns(3)
    with left:
        st.caption("Tokens that say where it fires")
        st.dataframe(rows("tokens")[["piece", "count", "share", "lift", "mean"]], hide_index=True, height=280)
        lens = rows("logits")
        if len(lens):
            st.caption("Tokens that its direction promotes and suppresses")
            st.dataframe(lens[["side", "piece", "value"]], hide_index=True, height=280)
    with middle:
        st.caption("Labels more common where it fires than by chance (q: false discovery rate)")
        labels = rows("enrichment")
        if len(labels):
            most = slider("q at most (log10)", -12.0, 0.0, 0.0, "q", 0.5)
            labels = labels[labels["q"] <= 10**most].sort_values("q")
            st.dataframe(labels[["label", "level", "q", "odds_ratio", "inside", "size"]], hide_index=True, height=280)
    with right:
        st.caption("Latents of nearly its direction")
        notes = view.of_files(lambda: artifacts.notes(latents), "notes")
        near = rows("neighbours")
        if len(near):
            near = near.assign(explanation=[notes.get(int(other), "") for other in near["neighbour"]])
            st.dataframe(near[["neighbour", "cosine", "explanation"]], hide_index=True, height=280)


def _bars(facts: pd.Series, edges: list[float]) -> pd.DataFrame:
    """The part of the histogram with anything in it."""
    counts = np.asarray(facts["histogram"])
    there = np.flatnonzero(counts)
    part = slice(there[0], there[-1] + 1)
    low, high = np.asarray(edges[:-1])[part], np.asarray(edges[1:])[part]
    return pd.DataFrame({"kind": "codes", "low": low, "high": high, "share": counts[part] / counts.sum()})


def _written(examples: pd.DataFrame) -> pd.DataFrame:
    """Examples as lines of text."""
    columns = ["kind", "rank", "value", "document", "title", "label"]
    return examples[columns].assign(text=examples["pieces"].map("".join))
