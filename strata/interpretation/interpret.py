"""Find out what each latent of a layer fires on, and write `data/latents/<L>/`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from strata.device.machine import CPU
from strata.interpretation import explanations, export, logit_lens, look, neighbours, tables
from strata.interpretation import text as texts
from strata.interpretation.codes import write_codes
from strata.interpretation.enrichment import enrich
from strata.interpretation.examples import pool
from strata.interpretation.filters import QUADRANTS, REASONS, Filters, dropped, quadrants
from strata.interpretation.interest import interest
from strata.interpretation.knobs import Interpret
from strata.interpretation.read import open_codes
from strata.interpretation.scoring import SCORES
from strata.interpretation.statistics import Table, edges, geometry, importance, token_counts
from strata.interpretation.text import Text
from strata.interpretation.vocabulary import Vocabulary
from strata.lm.model import LanguageModel, pieces
from strata.rows.shards import Activations, Contexts
from strata.run import files, resume
from strata.run.door import BadInput
from strata.sae.disk import decoder_hash
from strata.sae.sae import SAE


@dataclass(frozen=True)
class Source:
    """The text that a layer's latents are looked at on. ``titles`` and ``labels``: of every document of the corpus."""

    activations: Activations
    contexts: Contexts
    titles: list[str | None]
    labels: list[str | None]
    vocabulary: Vocabulary


def check(sae: SAE, activations: Activations) -> None:
    """Refuse an SAE that cannot belong to these activations, since it has another width."""
    if sae.width != activations.width:
        raise BadInput(
            f"the SAE reads vectors of width {sae.width}, but those of {activations.folder} have width "
            f"{activations.width}; train it again"
        )


def interpret(
    sae: SAE,
    source: Source,
    knobs: Interpret,
    seed: int,
    folder: Path,
    work: Path,
    device: torch.device = CPU,
    certificates: Table | None = None,
) -> dict[str, Any]:
    """Write `data/latents/<L>/` into ``folder`` and return the numbers for the report.

    ``work``: a folder for results that let a killed stage go on: the codes by shard, and the results of each range of
    latents. ``certificates``: what stability says of the latents, the columns export.CERTIFICATES; None if it did not
    run.
    """
    activations, vocabulary = source.activations, source.vocabulary

    # The codes of all rows, by latent.
    shards, largest = write_codes(sae, activations, work, device)
    codes, bins = open_codes(work, shards, sae.latents), edges(largest)

    # The text they stand on. Documents are shared out between explainers and scores.
    text = texts.read_text(source.contexts, work, min(knobs.window, source.contexts.meta["context"]))
    halves = explanations.split(text, vocabulary.opening, seed, vocabulary.bags(text))
    background = token_counts(text, vocabulary.size)

    # What goes by latent.
    how = look.Look(
        activations=activations,
        text=text,
        bins=bins,
        words=look.words(vocabulary, background, source.titles, source.labels),
        background=background,
        halves=halves,
        labels=vocabulary.label_bags(text, source.labels),
        pool=pool(activations, text, knobs.examples.pool, seed),
        knobs=knobs,
        seed=seed,
    )
    looked = look.look(codes, how, vocabulary, folder, work)

    # What needs the whole layer.
    statistics = looked.statistics | geometry(sae)
    statistics["importance"] = importance(statistics)
    statistics |= certificates or dict.fromkeys(export.CERTIFICATES, np.full(sae.latents, np.nan))
    statistics |= verdicts(statistics, len(text.documents), knobs.filters)
    statistics["interest"] = _interest(statistics, looked, folder)
    statistics |= _logits(sae, vocabulary.lm, knobs.logits, folder)
    nearest = neighbours.nearest(sae.decoder.float().cpu().numpy(), ~statistics["dead"], knobs.neighbours)
    files.write_table(folder / "neighbours.parquet", nearest, export.NEIGHBOURS)

    counts = _counts(statistics)
    report = {"layer": activations.layer, "rows": activations.rows, "documents": len(text.documents), **counts}
    report["enrichment"] = _enrichment(looked, source, text, seed, folder)

    files.write_table(folder / "statistics.parquet", statistics, export.STATISTICS)
    report["named"] = tables.write([*looked.rules, *looked.labels], folder)
    report["rule"] = explanations.report(looked.rules, seed, SCORES)
    if looked.labels:
        report["label"] = explanations.report(looked.labels, seed, SCORES)

    # meta.json comes last, since it holds the hashes of all other files.
    resume.deliver(work, folder, ["codes"])
    files.write_json(folder / "meta.json", _meta(source, sae, knobs, seed, text, bins, counts, shards, folder))
    return report


def verdicts(statistics: Table, documents: int, filters: Filters) -> Table:
    """Give each latent its quadrant, and say whether the filters keep it and, if not, why."""
    quadrant = quadrants(statistics["entropy"], statistics["varentropy"], ~statistics["dead"])
    firing = statistics["documents"] / documents
    again = statistics.get("again", np.full(len(firing), np.nan))
    reasons = dropped(statistics["entropy_share"], firing, statistics["importance"], again, quadrant, filters)
    return {"quadrant": quadrant, "dropped": reasons, "kept": np.array([reason is None for reason in reasons])}


def _interest(statistics: Table, looked: look.Looked, folder: Path) -> np.ndarray:
    """Compute (latents,) the interest of each latent, from the tokens that ``folder`` holds and the scores of rules."""
    columns = ["latent", "share", "background"]
    first = pq.read_table(folder / "tokens.parquet", columns=columns, filters=[("rank", "=", 0)])
    return interest(statistics, [*looked.rules, *looked.labels], *(first[name].to_numpy() for name in columns))


def _counts(statistics: Table) -> dict[str, Any]:
    """Count the latents that are dead, kept, dropped for each reason, and in each quadrant."""
    reasons, quadrant = statistics["dropped"], statistics["quadrant"]
    return {
        "latents": len(reasons),
        "dead": int(statistics["dead"].sum()),
        "kept": int(statistics["kept"].sum()),
        "dropped": {name: reasons.count(name) for name in REASONS},
        "quadrants": {name: quadrant.count(name) for name in QUADRANTS.values()},
    }


def _logits(sae: SAE, lm: LanguageModel | None, top: int, folder: Path) -> Table:
    """Write `logits.parquet`, and return the skew and kurtosis of each latent's logits.

    Without a model, or if the last steps of the model are not understood, nothing is written and both are NaN.
    """
    lens = logit_lens.lens(sae.decoder, lm, top) if top and lm else None
    if lens is None or lm is None:
        return dict.fromkeys(("skew", "kurtosis"), np.full(sae.latents, np.nan))

    columns = lens.columns()
    tokens, number = np.unique(columns["token"], return_inverse=True)  # each token's text is made once
    token_texts = pa.array(pieces(lm.tokenizer, tokens.tolist()), pa.string())
    files.write_table(
        folder / "logits.parquet", {**columns, "piece": token_texts.take(pa.array(number))}, export.LOGITS
    )
    return {"skew": lens.skew, "kurtosis": lens.kurtosis}


def _enrichment(looked: look.Looked, source: Source, text: Text, seed: int, folder: Path) -> dict[str, Any] | None:
    """Write `enrichment.parquet` and return its numbers for the report.

    If the documents do not have at least two different labels, print that this is skipped, and return None.
    """
    names = sorted({label for label in source.labels if label is not None})
    if len(names) < 2:
        sys.stderr.write(
            f"interpret: enrichment is skipped: the corpus has {len(names)} labels, and it takes two; "
            "name the column in params.yaml: fetch.corpus.sources, as label\n"
        )
        return None

    number = {name: place for place, name in enumerate(names)}
    document_label = np.array([-1 if name is None else number[name] for name in source.labels])
    row_document = text.document_of(np.arange(text.rows))
    rows = look.joined(looked.rows) if source.vocabulary.lm else None  # else rows are documents
    documents = look.joined(looked.documents)
    columns, report = enrich(rows, documents, row_document, document_label, len(names), seed)

    labels = pa.array(names, pa.string()).take(pa.array(columns["label"]))
    files.write_table(folder / "enrichment.parquet", {**columns, "label": labels}, export.ENRICHMENT)
    return report


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
    """Put together `meta.json`: what the folder was made from, its counts, and the hashes of its files."""
    meta = source.activations.meta
    return {
        "layer": meta["layer"],
        "latents": sae.latents,
        "width": sae.width,
        "sae": decoder_hash(sae),
        "rows": meta["rows"],
        "documents": len(text.documents),
        "model": meta["model"],
        "hook": meta["hook"],
        "corpus": meta["corpus"],
        "texts": knobs.texts and [entry["source"] for entry in knobs.texts["sources"]],
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
