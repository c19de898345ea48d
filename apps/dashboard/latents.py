"""Tab: search a layer's latents, and show all that is known of one."""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.dashboard import charts
from apps.dashboard.artifacts import TOKEN
from apps.dashboard.marks import marks
from apps.dashboard.view import View
from apps.dashboard.widgets import choice, csv, kept, one_of, slider, table
from apps.serve.explainer import explanations
from stages.report.judged import verdict
from strata.families.read import Clusters
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
COLUMNS = {  # of the table, in their order
    "latent": st.column_config.NumberColumn(width=60, format="%d"),
    "name": st.column_config.TextColumn(width=190),
    "tokens": st.column_config.TextColumn("strongest tokens", width=130),
    "density": st.column_config.NumberColumn("fires on", width=70, format="percent"),
    "score": st.column_config.NumberColumn(width=60, format="%.2f", help="balanced accuracy of the best explanation"),
    "chance": st.column_config.NumberColumn(width=60, format="%.2f", help="the same of other latents' explanations"),
    "interest": st.column_config.NumberColumn(width=70, format="%.3f"),
    "importance": st.column_config.NumberColumn(width=90, format="%.3g"),
    "mean": st.column_config.NumberColumn("mean code", width=90, format="%.3g"),
    "max": st.column_config.NumberColumn("largest code", width=90, format="%.3g"),
    "explanation": st.column_config.TextColumn(width=400),
    "state": st.column_config.TextColumn(width=120),
}
VERDICTS = {True: ", and its scores", False: ": no better than chance", None: ": not judged"}  # behind a title
HIGH = 900  # pixels of the table: as high as the detail beside it
CHOSEN, ASKED = "keep_latent", "keep_asked"  # the keys of the latent that is looked at, and of what was searched for
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

    frame = view.of_files(lambda: overview(latents), "overview", view.project.named())
    left, middle, right = st.columns([3, 2, 2])
    states = sorted(frame["state"].unique(), key=lambda state: (state != "kept", state))
    with left:
        words = st.text_input("Search names, explanations, tokens", key=kept("search", ""), placeholder="e.g. war")
    with middle:
        default = states[:1] if states[0] == "kept" else [state for state in states if state != "dead"]
        wanted_states = st.multiselect("State", states, key=kept("states", default, set(states).issuperset))
    with right:
        order = choice("Order by", list(ORDERS), "interest", "order")
    with st.expander("More filters"):
        low, high = slider("Fires on this share of rows (log10)", LEAST, 0.0, (LEAST, 0.0), "density", 0.1)
        above = slider("Score above chance by at least", ANY, 0.5, ANY, "told", 0.05)

    matches = matching(frame, words, wanted_states, (low, high), above)
    matches = matches.sort_values([order, "latent"], ascending=[ORDERS[order], True])
    asked = view.layer, words, tuple(wanted_states), order, low, high, above
    table, detail = st.columns([5, 6])
    with table:
        _table(matches, len(frame), asked)
    with detail:
        key = kept("latent", 0, range(len(frame)).__contains__)  # another layer may have fewer
        latent = st.number_input("Latent (or choose a line of the table)", 0, len(frame) - 1, key=key)
    _details(view, latents, int(latent), detail)


def _table(matches: pd.DataFrame, latents: int, asked: Hashable) -> None:
    """Show the latents that were found, and let one be chosen: CHOSEN.

    ``latents``: how many there are in all. ``asked``: what was asked for; when that changes, the first one is chosen.
    """
    shown = matches["latent"].tolist()

    def choose() -> None:
        if rows := st.session_state["latent_rows"]["selection"]["rows"]:
            st.session_state[CHOSEN] = shown[rows[0]]

    if not shown:
        st.info("No latent passes these filters. Search for other words, or let more states in.")
    else:
        st.dataframe(
            matches, hide_index=True, height=HIGH, on_select=choose, selection_mode="single-row", key="latent_rows",
            column_order=list(COLUMNS), column_config=COLUMNS, placeholder="–",
        )  # fmt: skip
    st.caption(f"{len(shown):,} of {latents:,} latents")
    csv(matches, "latents")
    if st.session_state.get(ASKED) != asked and shown:
        st.session_state[CHOSEN] = shown[0]
    st.session_state[ASKED] = asked


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


def _details(view: View, latents: Latents, latent: int, beside: DeltaGenerator) -> None:
    """Show all that interpret and cluster know of a latent: the most telling ``beside`` the table, the rest below."""

    def rows(name: str) -> pd.DataFrame:
        table = latents.table(name, filters=[("latent", "=", latent)])
        return pd.DataFrame() if table is None else table.to_pandas().drop(columns="latent")

    facts, unit = rows("statistics").iloc[0], latents.meta["unit"]
    with beside:
        page = view.page(latent)
        st.markdown(f"### Latent {latent}" + (f" &nbsp; [its page]({page})" if page else ""))
        if page is None:
            st.caption("Its page: `make serve` makes one for each latent.")
        if facts["dead"]:
            st.info(f"Latent {latent} is dead: nothing in the corpus makes it fire.")
            return

        st.text(view.of_files(latents.names, "names", view.project.named()).get(latent, UNNAMED))
        st.caption(_numbers(facts, unit))
        _explanations(view.of_files(lambda: explanations(latents), "explanations").get(latent, []))
        _contexts(rows("examples"), facts, latent, unit)

    left, right = st.columns(2)
    with left:
        st.caption("How often it takes a value, of all times that it fires")
        st.altair_chart(charts.histogram(_bars(facts, latents.meta["histogram_edges"]), "code", log=True))
    with right:
        _on_the_map(view, latent)
    _tables(rows, view, latents)


def _explanations(found: list[dict[str, Any]]) -> None:
    """Show a latent's explanations, each with its scores beside chance; those that tell nothing are folded."""
    for explanation in found:
        told, words = verdict(explanation)
        text = explanation["text"] or "no explanation"
        if told:
            st.text(text)
        with st.expander(f"Explanation by {explanation['source']}{VERDICTS[told]}"):
            if not told:
                st.text(text)
            st.caption(words)
            scores = [
                {"score": name, "value": number(explanation[key]), "chance": number(explanation[f"{key}_chance"])}
                for key, name in SCORES.items()
                if explanation[key] is not None
            ]
            if scores:
                st.table(pd.DataFrame(scores).set_index("score"))


def _numbers(facts: pd.Series, unit: str) -> str:
    """Write the latent's statistics in a line."""
    documents = number(int(facts["documents"]))
    return " · ".join([
        f"fires on **{percent(facts['density'])}** of {unit}s, in {documents} documents",
        f"mean code **{number(facts['mean'])}**, largest **{number(float(facts['max']))}**",
        f"entropy **{number(facts['entropy_share'])}** of the largest possible",
    ])  # fmt: skip


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

    where = "It is not on the map: cluster ran on other latents." if family is None else _family(clusters, family)
    st.caption(where)
    drawn = places.sort_values("this", ascending=False)[["latent", "cluster", "x", "y", "this"]]
    st.altair_chart(charts.points(drawn, "this", height=charts.HEIGHT))


def _family(clusters: Clusters, family: int) -> str:
    """Say which family a latent is of."""
    if family < 0:
        return "On the map of families, in none of them. Near latents are alike."
    row = next(row for row in clusters.table("clusters").to_pylist() if row["cluster"] == family)
    return f"On the map of families, in family {family} of {row['size']}: {row['name']}. Near latents are alike."


def _tables(rows: Callable[[str], pd.DataFrame], view: View, latents: Latents) -> None:
    """Show the tables of a latent in three columns. ``rows``: the name of a table -> its rows for this latent."""
    left, middle, right = st.columns(3)

    with left:
        st.caption("Tokens that say where it fires")
        table(rows("tokens")[["piece", "count", "share", "lift", "mean"]])
        lens = rows("logits")
        if len(lens):
            st.caption("Tokens that its direction promotes and suppresses")
            table(lens[["side", "piece", "value"]])

    with middle:
        st.caption("Labels more common where it fires than by chance (q: false discovery rate)")
        labels = rows("enrichment")
        if len(labels):
            most = slider("q at most (log10)", -12.0, 0.0, 0.0, "q", 0.5)
            labels = labels[labels["q"] <= 10**most].sort_values("q")
        if len(labels):
            table(labels[["label", "level", "q", "odds_ratio", "inside", "size"]])
        else:
            st.caption("None: the documents have no labels, or no label has so small a q.")

    with right:
        st.caption("Latents of nearly its direction")
        names = view.of_files(latents.names, "names", view.project.named())
        near = rows("neighbours")
        if len(near):
            links = [view.link(int(neighbour)) for neighbour in near["neighbour"]]
            called = [names.get(int(neighbour)) for neighbour in near["neighbour"]]
            table(pd.DataFrame({"latent": links, "cosine": near["cosine"], "name": called}))
        else:
            st.caption("None.")


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
