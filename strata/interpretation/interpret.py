"""All that is known of a layer's latents."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from strata.device.machine import CPU
from strata.interpretation import explanations, export, logit_lens, look, neighbours
from strata.interpretation import text as texts
from strata.interpretation.codes import write_codes
from strata.interpretation.enrichment import enrich
from strata.interpretation.examples import pool
from strata.interpretation.explain import Explain, explain, open_writer
from strata.interpretation.explanations import Explanation, Halves
from strata.interpretation.filters import QUADRANTS, REASONS, Filters, dropped, quadrants
from strata.interpretation.knobs import Interpret
from strata.interpretation.read import Codes, open_codes
from strata.interpretation.statistics import Table, edges, geometry, importance, token_counts
from strata.interpretation.text import Text
from strata.interpretation.vocabulary import Vocabulary
from strata.interpretation.writers import embedder
from strata.lm.model import LanguageModel, pieces
from strata.rows.shards import Activations, Contexts
from strata.run import files, resume
from strata.run.door import BadInput
from strata.sae.sae import SAE
from strata.tables import parquet


@dataclass(frozen=True)
class Source:
    """What a layer's latents are looked at on. ``titles`` and ``labels``: of every document of the corpus."""

    activations: Activations
    contexts: Contexts
    titles: list[str | None]
    labels: list[str | None]
    vocabulary: Vocabulary


def check(sae: SAE, activations: Activations) -> None:
    """Refuse an SAE that cannot be of these activations."""
    if sae.width != activations.width:
        raise BadInput(
            f"the SAE reads vectors of width {sae.width}, but those of {activations.folder} have width "
            f"{activations.width}; train it again"
        )


def interpret(
    sae: SAE, source: Source, knobs: Interpret, seed: int, folder: Path, work: Path, device: torch.device = CPU
) -> dict[str, Any]:
    """Write `data/latents/<L>/` into ``folder``; return the report's numbers. ``work``: for what a killed stage goes on
    from: the codes by shard, what is looked at by range of latents."""
    activations, vocabulary = source.activations, source.vocabulary
    shards, largest = write_codes(sae, activations, work, device)
    codes, bins = open_codes(work, shards, sae.latents), edges(largest)
    text = texts.read_text(source.contexts, work, min(knobs.window, source.contexts.meta["context"]))
    halves = explanations.split(text, vocabulary.opening, seed, vocabulary.bags(text))
    background = token_counts(text, vocabulary.size)
    found = look.look(
        codes,
        look.Look(
            activations,
            text,
            bins,
            look.words(vocabulary, background, source.titles, source.labels),
            background,
            halves,
            vocabulary.label_bags(text, source.labels),
            pool(activations, text, knobs.examples.pool, seed),
            knobs,
            seed,
        ),
        vocabulary,
        folder,
        work,
    )
    statistics = found.statistics | geometry(sae)
    statistics["importance"] = importance(statistics)
    statistics |= _verdicts(statistics, len(text.documents), knobs.filters)
    statistics |= _logits(sae, vocabulary.lm, knobs.logits, folder)
    parquet.write(folder / "statistics.parquet", statistics, export.STATISTICS)
    near = neighbours.nearest(sae.decoder.float().cpu().numpy(), ~statistics["dead"], knobs.neighbours)
    parquet.write(folder / "neighbours.parquet", near, export.NEIGHBOURS)

    counts = _counts(statistics)
    report = {"layer": activations.layer, "rows": activations.rows, "documents": len(text.documents), **counts}
    report["enrichment"] = _enrichment(found, source, text, seed, folder)
    written = _explain(codes, statistics, found.rules, text, halves, source, knobs.explain, seed)
    everything = sorted([*found.rules, *found.labels, *written], key=lambda e: (e.latent, e.source != "rule"))
    rows = [explanation.row() for explanation in everything]
    with parquet.writing(folder / "explanations.parquet", export.EXPLANATIONS) as table:
        table.write_table(pa.Table.from_pylist(rows, export.EXPLANATIONS), parquet.GROUP)
    report["rule"] = explanations.report(found.rules, seed)
    if found.labels:
        report["label"] = explanations.report(found.labels, seed)
    if written:
        report[written[0].source] = explanations.report(written, seed)
    resume.deliver(work, folder, ["codes"])
    files.write_json(folder / "meta.json", _meta(source, sae, knobs, seed, text, bins, counts, shards, folder))
    return report


def _verdicts(statistics: Table, documents: int, filters: Filters) -> Table:
    """Quadrant, and whether the filters keep a latent and why not."""
    quadrant = quadrants(statistics["entropy"], statistics["varentropy"], ~statistics["dead"])
    firing = statistics["documents"] / documents
    reasons = dropped(statistics["entropy_share"], firing, statistics["importance"], quadrant, filters)
    return {"quadrant": quadrant, "dropped": reasons, "kept": np.array([reason is None for reason in reasons])}


def _counts(statistics: Table) -> dict[str, Any]:
    reasons, quadrant = statistics["dropped"], statistics["quadrant"]
    return {
        "latents": len(reasons),
        "dead": int(statistics["dead"].sum()),
        "kept": int(statistics["kept"].sum()),
        "dropped": {name: reasons.count(name) for name in REASONS},
        "quadrants": {name: quadrant.count(name) for name in QUADRANTS.values()},
    }


def _logits(sae: SAE, lm: LanguageModel | None, top: int, folder: Path) -> Table:
    """Write `logits.parquet`; skew and kurtosis, NaN without a model whose head is understood."""
    found = logit_lens.lens(sae.decoder, lm, top) if top and lm else None
    if found is None or lm is None:
        return dict.fromkeys(("skew", "kurtosis"), np.full(sae.latents, np.nan))
    columns = found.columns()
    tokens, number = np.unique(columns["token"], return_inverse=True)
    names = pa.array(pieces(lm.tokenizer, tokens.tolist()), pa.string())
    parquet.write(folder / "logits.parquet", {**columns, "piece": names.take(pa.array(number))}, export.LOGITS)
    return {"skew": found.skew, "kurtosis": found.kurtosis}


def _enrichment(found: look.Looked, source: Source, text: Text, seed: int, folder: Path) -> dict[str, Any] | None:
    """Write `enrichment.parquet`; None, said aloud, where there are not two labels to tell apart."""
    names = sorted({label for label in source.labels if label is not None})
    if len(names) < 2:
        sys.stderr.write(
            f"interpret: enrichment is skipped: the corpus has {len(names)} labels, and it takes two; "
            "name the column in params.yaml: fetch.corpus.sources, as label\n"
        )
        return None
    number = {name: place for place, name in enumerate(names)}
    label = np.array([-1 if name is None else number[name] for name in source.labels])
    owner = text.document_of(np.arange(text.rows))
    rows = look.joined(found.rows) if source.vocabulary.lm else None
    documents = look.joined(found.documents)
    columns, report = enrich(rows, documents, owner, label, len(names), seed)
    labels = pa.array(names, pa.string()).take(pa.array(columns["label"]))
    parquet.write(folder / "enrichment.parquet", {**columns, "label": labels}, export.ENRICHMENT)
    return report


def _explain(
    codes: Codes,
    statistics: Table,
    rules: list[Explanation],
    text: Text,
    halves: Halves,
    source: Source,
    knobs: Explain,
    seed: int,
) -> list[Explanation]:
    """Explanations in words of the most important latents that the filters keep, and embedding scores of these.

    Those that can be scored come first: one that fires in every window has no silent one to be told from.
    """
    layer = source.activations.layer
    if knobs.model is None or (knobs.layers is not None and layer not in knobs.layers):
        return []
    if knobs.model == "lm" and source.vocabulary.lm is None:
        sys.stderr.write("interpret: nothing is explained in words: there is no language model that could\n")
        return []
    low, high = knobs.range or (0, codes.latents)
    full = np.array([rule.items == knobs.items for rule in rules])
    order = np.lexsort((-statistics["importance"], ~(statistics["kept"] & full)))
    chosen = [j for j in order.tolist() if low <= j < high and not statistics["dead"][j]][: knobs.latents]
    shown = knobs.shown, knobs.silent, knobs.items, source.vocabulary.pieces
    cases = [explanations.case(codes.columns(j, j + 1), j, halves, text, *shown) for j in sorted(chosen)]
    fingerprint = source.activations.meta["model"]["fingerprint"]
    writer, name, fits = open_writer(knobs, source.vocabulary.lm, fingerprint, resume.main_root() / ".replies")
    found = explain(cases, writer, name, seed, fits)
    if knobs.embedder is not None and cases:
        embed = embedder(knobs.embedder)
        for some in (found, [rules[case.latent] for case in cases]):
            explanations.add_embedding_score(some, cases, embed, seed)
    return found


def _meta(
    source: Source,
    sae: SAE,
    knobs: Interpret,
    seed: int,
    text: Text,
    bins: np.ndarray,
    counts: dict[str, Any],
    shards: list[dict[str, Any]],
    folder: Path,
) -> dict[str, Any]:
    meta = source.activations.meta
    return {
        "layer": meta["layer"],
        "latents": sae.latents,
        "width": sae.width,
        "rows": meta["rows"],
        "documents": len(text.documents),
        "model": meta["model"],
        "hook": meta["hook"],
        "corpus": meta["corpus"],
        "texts": knobs.texts and [source["source"] for source in knobs.texts["sources"]],
        "labels": sorted({label for label in source.labels if label is not None}) or None,
        "context": source.contexts.meta["context"],
        "unit": source.vocabulary.unit,
        "seed": seed,
        "counts": counts,
        "histogram_edges": bins.tolist(),
        "interpret": knobs.model_dump(),
        "files": files.hashes(folder),
        "shards": shards,
    }
