"""Explain a layer's most important latents in words, and write `data/explained/<L>/`.

The folder has the tables that interpret wrote (see `tables.py`), with what a language model said added, and a
`meta.json` that says which latents they belong to. `read.open_latents` lays them over interpret's own.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from strata.interpretation import explanations, marks, tables
from strata.interpretation import text as texts
from strata.interpretation.explain import explain, open_writer
from strata.interpretation.explain_knobs import Explain
from strata.interpretation.explanations import FUZZING, INTRUDER, Case, Explanation
from strata.interpretation.read import EXPLAINED, Latents
from strata.interpretation.vocabulary import Vocabulary
from strata.interpretation.writers import embedder
from strata.rows.shards import Contexts
from strata.run import files, resume
from strata.run.door import BadInput


def check(latents: Latents, contexts: Contexts) -> None:
    """Refuse latents that were not looked at on the text of ``contexts``."""
    if latents.meta["rows"] != contexts.meta["rows"]:
        raise BadInput(
            f"{latents.folder} is of {latents.meta['rows']} rows, but {contexts.meta['rows']} are stored; "
            "run interpret again"
        )


def asked(latents: Latents, knobs: Explain) -> bool:
    """Say whether the knobs ask for explanations of this layer. ``knobs.layers``: null is no layer here."""
    return knobs.model is not None and latents.meta["layer"] in (knobs.layers or ())


def explain_latents(
    latents: Latents, contexts: Contexts, vocabulary: Vocabulary, knobs: Explain, seed: int, folder: Path, work: Path
) -> dict[str, Any]:
    """Write `data/explained/<L>/` into ``folder`` and return the numbers for the report.

    ``contexts``, ``vocabulary``: the text that interpret looked at the latents on. ``work``: a folder for files that
    pass.
    """
    if knobs.model == "lm" and vocabulary.lm is None:
        sys.stderr.write("explain: nothing is explained in words: there is no language model that could\n")
        return hand_on(latents, knobs, folder)

    everything = tables.read(latents)
    rules = [explanation for explanation in everything if explanation.source == "rule"]
    cases = _cases(latents, rules, contexts, vocabulary, knobs, work)

    fingerprint = latents.meta["model"]["fingerprint"]
    answers = open_writer(knobs, vocabulary.lm, fingerprint, resume.main_root() / ".replies")
    besides = marks.about_tokens(cases, knobs.scores) if answers.kind == "endpoint" else 0
    in_words = explain(cases, answers.writer, answers.kind, seed, answers.fits, answers.judge, besides)
    if FUZZING in knobs.scores:
        marks.add_fuzzing(in_words, cases, answers.judge_marks, seed)
    if INTRUDER in knobs.scores:
        marks.add_intruder(in_words, cases, answers.find_odd, seed)

    # The rules of the same latents stand beside their explanations.
    beside = [rules[case.latent] for case in cases]
    if knobs.embedder is not None and cases:
        embed = embedder(knobs.embedder)
        explanations.add_embedding_score(in_words, cases, embed, seed)
        explanations.add_embedding_score(beside, cases, embed, seed)

    report = {"layer": latents.meta["layer"], "named": tables.write([*everything, *in_words], folder)}
    if in_words:
        report |= {"rule": explanations.report(beside, seed), answers.kind: explanations.report(in_words, seed)}
    _write_meta(latents, knobs, folder)
    return report


def hand_on(latents: Latents, knobs: Explain, folder: Path) -> dict[str, Any]:
    """Write `data/explained/<L>/` with the tables of interpret as they are, and return the numbers for the report."""
    names = [f"{name}.parquet" for name in EXPLAINED]
    for name in names:
        files.check_hash(latents.folder, name, latents.meta.get("files", {}), "interpret")
    for name in names:
        files.write_bytes(folder / name, (latents.folder / name).read_bytes())
    _write_meta(latents, knobs, folder)
    return {"layer": latents.meta["layer"], "named": len(latents.names())}


def _cases(
    latents: Latents,
    rules: list[Explanation],
    contexts: Contexts,
    vocabulary: Vocabulary,
    knobs: Explain,
    work: Path,
) -> list[Case]:
    """Choose the most important latents, and some at random, and what to show and to ask about each.

    Latents that the filters keep and that can be scored come first. A latent that fires in every window cannot be: it
    has no silent windows to tell it from. ``rules``: the rule of every latent, by latent. Documents are shared out
    between explainers and scores as interpret did it.
    """
    interpreted = latents.meta["interpret"]
    window, items = interpreted["window"], interpreted["items"]
    text = texts.read_text(contexts, work, min(window, contexts.meta["context"]))
    halves = explanations.split(text, vocabulary.opening, latents.meta["seed"], vocabulary.bags(text))

    # Which latents: kept and fully scored ones first, then by falling importance.
    table = latents.table("statistics", ["importance", "kept", "dead"])
    assert table is not None, "interpret always writes it"
    importance, kept, dead = (table[name].to_numpy() for name in ("importance", "kept", "dead"))
    low, high = knobs.range or (0, len(rules))
    fully_scored = np.array([rule.items == items for rule in rules])
    order = np.lexsort((-importance, ~(kept & fully_scored)))
    living = [j for j in order.tolist() if low <= j < high and not dead[j]]
    chosen, others = living[: knobs.latents], [j for j in living[knobs.latents :] if kept[j] and fully_scored[j]]
    random = np.random.default_rng([latents.meta["seed"], knobs.drawn])
    chosen += random.permutation(others)[: knobs.drawn].tolist()

    return [
        explanations.case(
            latents.columns(j, j + 1),
            latent=j,
            halves=halves,
            text=text,
            shown=knobs.shown,
            silent=knobs.silent,
            items=items,
            pieces=vocabulary.pieces,
            judged=knobs.window,
        )
        for j in sorted(chosen)
    ]


def _write_meta(latents: Latents, knobs: Explain, folder: Path) -> None:
    """Write `meta.json`: the layer, the latents that are explained, the knobs, and the hashes of the folder's files."""
    meta = {
        "layer": latents.meta["layer"],
        "latents": latents.fingerprint,
        "explain": knobs.model_dump(),
        "files": files.hashes(folder),
    }
    files.write_json(folder / "meta.json", meta)
