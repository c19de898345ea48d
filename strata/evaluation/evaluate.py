"""What peers measure of an SAE, beside chance and beside the activations themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strata.corpus.read import SPLITS
from strata.evaluation import pooled as documents
from strata.evaluation import probing
from strata.evaluation.absorption import absorption
from strata.evaluation.core import core
from strata.evaluation.knobs import Evaluate, Probing
from strata.evaluation.meta import meta
from strata.evaluation.redundancy import redundancy
from strata.evaluation.stability import stability
from strata.measure.controls import principal
from strata.rows.shards import Activations, Contexts
from strata.run import resume
from strata.sae.knobs import Train
from strata.sae.sae import SAE
from strata.seeds import generator
from strata.verdict.targets import Targets

INTERVALS = {
    "core": "95 % of a bootstrap over test documents",
    "redundancy": "95 % of a bootstrap over latents; of controls the least and the most over seeds",
    "probing": "the least and the most over seeds of the split",
    "meta": "the least and the most over seeds of the meta-SAE",
    "stability": "the least and the most over trainings with other seeds",
    "absorption": "the least and the most over seeds of rows and training",
}
GIVEN = {"why": "this layer's SAE was given (train.from), so that train's knobs say nothing of it"}


@dataclass(frozen=True)
class Source:
    """A layer's rows, the text they are of, and each document's label, None where it has none; ``train`` and
    ``targets``: how train would make that layer's SAE."""

    activations: Activations
    contexts: Contexts
    labels: Sequence[str | None]
    train: Train
    targets: Targets


def evaluate(sae: SAE, source: Source, knobs: Evaluate, seed: int, work: Path | None = None) -> dict[str, Any]:
    """What `reports/evaluate/<L>.json` says. ``sae`` is where the work is to be done. ``work``: where each section is
    kept, and of those that train each training, so that a killed stage goes on there."""
    row_document = [source.contexts.rows(split)[1] for split in SPLITS]
    activations, train, layer = source.activations, source.train, source.activations.layer
    imported = train.from_ is not None

    def at(name: str) -> Path | None:
        return work / name if work else None

    sections: dict[str, Callable[[], Any]] = {
        "core": lambda: core(sae, activations, row_document[-1], np.random.default_rng([seed, layer])),
        "redundancy": lambda: redundancy(sae, knobs.seeds, generator(seed, "redundancy", layer)),
        "probing": lambda: _probing(sae, source, np.concatenate(row_document), knobs.probing, knobs.seeds, seed),
    }
    if knobs.meta:
        seeds = range(seed, seed + knobs.meta)
        sections["meta"] = lambda: meta(sae.decoder, train, seeds, generator(seed, "meta", layer), at("meta"))
    if knobs.stability:
        others = range(seed + 1, seed + 1 + knobs.stability)
        random = generator(seed, "stability", layer)
        sections["stability"] = lambda: (
            GIVEN if imported else stability(sae, activations, train, source.targets, others, random, at("stability"))
        )
    if knobs.absorption:
        drawn = range(seed, seed + knobs.absorption)
        sections["absorption"] = lambda: GIVEN if imported else absorption(train, drawn, at("absorption"))

    found = {name: resume.once_json(at(f"{name}.json"), make) for name, make in sections.items()}
    intervals = {name: INTERVALS[name] for name in found}
    return {"layer": layer, "seeds": knobs.seeds, "intervals": intervals, **found}


def _probing(
    sae: SAE, source: Source, row_document: np.ndarray, knobs: Probing, seeds: int, seed: int
) -> dict[str, Any]:
    """The section probing, or why there is none."""
    labels = source.labels
    chosen = np.array([n for n in np.unique(row_document) if labels[n] is not None][: knobs.documents], np.int64)
    names = [str(labels[n]) for n in chosen]
    tasks = probing.commonest(names, knobs.least, knobs.labels)
    if not tasks:
        few = f"no label has {knobs.least} of the documents that were extracted, and as many without it"
        return {"why": few if knobs.labels else "evaluate.probing.labels is 0"}
    parts = documents.Parts(source.activations, documents.places(row_document, chosen, knobs.tokens), sae.b_dec.device)
    if not bool(sae.encode(next(iter(parts))[0]).active().any()):
        return {"why": "no latent is active on the first documents; the SAE may be of another scale or layer"}
    random = documents.untrained(sae, next(iter(parts))[0], generator(seed, "untrained", source.activations.layer))
    means = documents.pooled({"sae": sae, "untrained": random}, parts, len(chosen))
    mean = source.activations.mean.to(sae.b_dec.device)
    basis = principal((x for x, _ in parts), mean).cpu().numpy()
    columns = {**means, "pca": (means["residual"] - source.activations.mean.numpy()) @ basis}
    found = probing.probing(columns, names, tasks, knobs.k, knobs.held_out, range(seed, seed + seeds))
    return {"documents": len(chosen), "tasks": len(tasks), **found}
