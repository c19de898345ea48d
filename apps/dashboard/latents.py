"""Tab: search a layer's latents, and show all that is known of one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from apps.dashboard import charts
from apps.dashboard.artifacts import TOKEN
from apps.dashboard.marks import marks
from apps.dashboard.view import View
from apps.dashboard.widgets import choice, csv, kept, one_of, slider
from apps.serve.explainer import explanations
from strata.interpretation.read import Latents
from strata.pages.readable import SCORES, UNNAMED, number, percent, visible

LEAST, ANY = -6.0, -0.5  # bounds that leave nothing out: on log10 of a share, and on a score's distance above chance
KINDS = {
    "top": "strongest",
    "decile": "from strong to weak",
    "random": "at random",
    "near": "near misses",
    "zero": "silent",
}
SHOWN = [
    "latent",
    "name",
    "explanation",
    "tokens",
    "score",
    "chance",
    "density",
    "mean",
    "max",
    "interest",
    "importance",
    "state",
]
ORDERS = {
    "interest": False,
    "importance": False,
    "density": False,
    "mean": False,
    "max": False,
    "score": False,
    "latent": True,
}


def overview(latents: Latents) -> pd.DataFrame:
    """Return a line for each latent: name, statistics, strongest tokens, best explanation, its score and chance."""
    columns = [
        "latent",
        "name",
        "density",
        "mean",
        "max",
        "interest",
        "importance",
        "documents",
        "entropy_share",
        "dead",
        "kept",
        "dropped",
    ]
    tokens = latents.table("tokens", ["latent", "rank", "piece"])
    assert tokens is not None, "interpret always writes it"

    frame, pieces = latents.statistics().select(columns).to_pandas(), tokens.to_pandas()
    strongest = pieces[pieces["rank"] < 3].assign(piece=lambda rows: rows["piece"].map(visible))
    frame["tokens"] = frame["latent"].map(strongest.groupby("latent")["piece"].agg(" ".join)).fillna("")

    best = {latent: rows[0] for latent, rows in explanations(latents).items()}
    frame["explanation"] = [best.get(latent, {}).get("text") or "" for latent in frame["latent"]]
    frame["score"] = [best.get(latent, {}).get("balanced_accuracy", np.nan) for latent in frame["latent"]]
    frame["chance"] = [best.get(latent, {}).get("balanced_accuracy_chance", np.nan) for latent in frame["latent"]]

    why_dropped = frame["dropped"].fillna("").str.replace("_", " ")
    state = np.where(frame["dead"], "dead", np.where(frame["kept"], "kept", why_dropped))
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
        default = states[:1] if states[0] == "kept" else [state for state in states if state != "dead"]
        wanted_states = st.multiselect("State", states, key=kept("states", default, set(states).issuperset))
    with right:
        order = choice("Order by", list(ORDERS), "interest", "order")
        above = slider("Score above chance by at least", ANY, 0.5, ANY, "told", 0.05)

    matches = matching(frame, words, wanted_states, (low, high), above)
    matches = matches.sort_values([order, "latent"], ascending=[ORDERS[order], True])
    middle.metric("latents found", f"{len(matches):,}")
    table = st.dataframe(
        matches, hide_index=True, height=300, on_select="rerun", selection_mode="single-row", key="latent_rows",
        column_order=SHOWN,
    )  # fmt: skip
    csv(matches, "latents")

    # The latent of the chosen line, or of the first one.
    chosen = table["selection"]["rows"]  # pyright: ignore[reportIndexIssue]
    line = chosen[0] if chosen and chosen[0] < len(matches) else 0
    default = int(matches["latent"].iloc[line]) if len(matches) else 0
    st.divider()
    latent = st.number_input("Latent (or choose a line above)", 0, len(frame) - 1, default)
    _details(view, latents, int(latent))


def matching(
    frame: pd.DataFrame, words: str, states: list[str], density: tuple[float, float], above: float
) -> pd.DataFrame:
    """Return the lines of the latents that pass every condition.

    ``words``: all stand in the name, the explanation, the tokens or the number. ``states``: the latent has one of them.
    ``density``: two powers of ten, between which is the share of rows it fires on. ``above``: how far the score of its
    explanation is above chance, at least. LEAST and ANY leave nothing out.
    """
    searched = frame["name"].fillna("").str.cat(frame[["explanation", "tokens"]], sep=" ")
    text = searched.str.cat(frame["latent"].astype(str), sep=" ").str.lower()
    matches = frame["state"].isin(states)
    for word in words.lower().split():
        matches &= text.str.contains(word, regex=False)
    with np.errstate(divide="ignore"):
        log = np.log10(frame["density"])
    matches &= ((log >= density[0]) | (density[0] <= LEAST)) & (log <= density[1])
    if above > ANY:
        matches &= frame["score"] - frame["chance"].fillna(0.5) >= above
    return frame[matches]


def _details(view: View, latents: Latents, latent: int) -> None:
    """Show all that interpret and cluster know of a latent."""

    def rows(name: str) -> pd.DataFrame:
        table = latents.table(name, filters=[("latent", "=", latent)])
        return pd.DataFrame() if table is None else table.to_pandas().drop(columns="latent")

    facts = rows("statistics").iloc[0]
    if facts["dead"]:
        st.info(f"Latent {latent} is dead: nothing in the corpus makes it fire.")
        return

    st.markdown(f"### Latent {latent}")
    st.text(view.of_files(latents.names, "names", view.project.named()).get(latent, UNNAMED))
    for explanation in view.of_files(lambda: explanations(latents), "explanations").get(latent, []):
        st.text(_explained(explanation))
    _numbers(facts, latents.meta["unit"])

    left, right = st.columns([3, 2])
    with left:
        _contexts(rows("examples"), facts, latent, latents.meta["unit"])
    with right:
        st.caption("How often it takes a value")
        st.altair_chart(charts.histogram(_bars(facts, latents.meta["histogram_edges"]), "code", log=True))
        _on_the_map(view, latent)
    _tables(rows, view, latents)


def _explained(explanation: dict[str, Any]) -> str:
    """Write an explanation, and under it who gave it and its scores, each beside chance."""
    scores = [
        f"{name} {number(explanation[key])} (chance {number(explanation[f'{key}_chance'])})"
        for key, name in SCORES.items()
        if explanation[key] is not None
    ]
    source = " · ".join([f"by {explanation['source']}", *scores])
    return "\n".join([explanation["text"] or "no explanation", source])


def _numbers(facts: pd.Series, unit: str) -> None:
    """Show the latent's statistics beside each other."""
    values = {
        f"of {unit}s": percent(facts["density"]),
        "mean code": number(facts["mean"]),
        "largest": number(float(facts["max"])),
        "documents": number(int(facts["documents"])),
        "entropy": number(facts["entropy_share"]),
    }
    for column, (name, value) in zip(st.columns(len(values)), values.items(), strict=True):
        column.metric(name, value)


def _contexts(examples: pd.DataFrame, facts: pd.Series, latent: int, unit: str) -> None:
    """Show examples of one kind, as many as are asked for."""
    examples = examples.assign(group=examples["kind"].str.partition("-")[0])
    kinds = [kind for kind in KINDS if (examples["group"] == kind).any()]
    kind = one_of("Contexts", kinds, "contexts", KINDS.__getitem__)
    of_kind = examples[examples["group"] == kind]
    shown = of_kind.head(slider("How many", 1, len(of_kind), 8, "context number"))

    for example in shown.to_dict("records"):
        strength = number(float(example["value"])) if kind != "zero" else "0"
        values = list(example["values"]) if unit == TOKEN else [0.0]  # a whole document has no part to mark
        head = f"{strength} · {example['title'] or ''}"
        st.html(marks(example["pieces"], values, float(facts["max"]), head))
    csv(_written(examples), f"contexts of {latent}")


def _on_the_map(view: View, latent: int) -> None:
    """Show where the latent stands on the map of families, if cluster ran."""
    clusters = view.project.clusters(view.layer)
    if clusters is None:
        return

    places = clusters.table("latents").to_pandas()
    places = places[places["x"].notna()]
    is_this = places["latent"] == latent
    family = int(places.loc[is_this, "cluster"].iloc[0]) if is_this.any() else None
    places = places.assign(this=np.where(is_this, f"latent {latent}", charts.OTHER))

    st.caption("Not on the map: cluster ran on other latents" if family is None else f"Of family {family}")
    drawn = places.sort_values("this", ascending=False)[["latent", "cluster", "x", "y", "this"]]
    st.altair_chart(charts.points(drawn, "this"))


def _tables(rows: Callable[[str], pd.DataFrame], view: View, latents: Latents) -> None:
    """Show the tables of a latent in three columns. ``rows``: the name of a table -> its rows for this latent."""
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
        names = view.of_files(latents.names, "names", view.project.named())
        near = rows("neighbours")
        if len(near):
            near = near.assign(name=[names.get(int(neighbour), "") for neighbour in near["neighbour"]])
            st.dataframe(near[["neighbour", "cosine", "name"]], hide_index=True, height=280)


def _bars(facts: pd.Series, edges: list[float]) -> pd.DataFrame:
    """Return the histogram of codes as bars, without the empty bins at either end."""
    counts = np.asarray(facts["histogram"])
    filled = np.flatnonzero(counts)
    part = slice(filled[0], filled[-1] + 1)
    low, high = np.asarray(edges[:-1])[part], np.asarray(edges[1:])[part]
    return pd.DataFrame({"kind": "codes", "low": low, "high": high, "share": counts[part] / counts.sum()})


def _written(examples: pd.DataFrame) -> pd.DataFrame:
    """Return examples as lines of text, to download."""
    columns = ["kind", "rank", "value", "document", "title", "label"]
    return examples[columns].assign(text=examples["pieces"].map("".join))
