"""Measure an SAE as others in the field do, beside chance and beside the activations themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from strata.corpus.read import SPLITS
from strata.evaluation import letters, probing
from strata.evaluation import pooled as documents
from strata.evaluation.absorption import absorption
from strata.evaluation.core import core
from strata.evaluation.knobs import Evaluate, Probing, TokenRules
from strata.evaluation.meta import meta
from strata.evaluation.redundancy import redundancy
from strata.evaluation.rules import token_rules
from strata.evaluation.tasks import OWN, UNTRAINED, Judged, judge
from strata.measure.controls import principal
from strata.rows.batches import blocks
from strata.rows.shards import Activations, Contexts
from strata.run import resume
from strata.run.progress import each
from strata.sae.sae import SAE
from strata.seeds import generator
from strata.tasks.knobs import Tasks
from strata.tasks.read import PromptRows, Task
from strata.training.knobs import GIVEN, Train

INTERVALS = {
    "core": "95 % of a bootstrap over test documents",
    "redundancy": "95 % of a bootstrap over latents; of controls the least and the most over seeds",
    "probing": "the least and the most over seeds of the split",
    "tasks": "95 % of a bootstrap over tasks",
    "rules": "95 % of a bootstrap over latents",
    "meta": "the least and the most over seeds of the meta-SAE",
    "letters": "95 % of a bootstrap over letters",
    "absorption": "the least and the most over seeds of rows and training",
}


@dataclass(frozen=True)
class Source:
    """What a layer's SAE is evaluated on: its rows, the texts they come from, and the label of each document, or None.

    ``train``: how train would make that layer's SAE. ``twins``: its controls of equal budget, by name. ``replicas``:
    the SAE trained again, by seed; tasks judge them together with it. ``tasks``, and the ``prompts`` that they are of:
    None where there is no language model to read them. ``pieces``: the text of each token of the model, or None.
    """

    activations: Activations
    contexts: Contexts
    labels: Sequence[str | None]
    train: Train
    twins: Mapping[str, SAE] = field(default_factory=dict)
    replicas: Mapping[int, SAE] = field(default_factory=dict)
    tasks: Sequence[Task] = ()
    prompts: PromptRows | None = None
    pieces: Sequence[str] | None = None


def evaluate(
    sae: SAE, source: Source, knobs: Evaluate, seed: int, work: Path | None = None, processes: int = 1
) -> dict[str, Any]:
    """Measure ``sae`` and return the content of `reports/evaluate/<L>.json`. The device of ``sae`` does the work.

    ``work``: a folder where each section is kept when it is done, and also each training of the sections that train. A
    stage that was killed goes on from there. ``processes``: tasks that are probed at a time.
    """
    row_document = [source.contexts.rows(split)[1] for split in SPLITS]
    activations, train, layer = source.activations, source.train, source.activations.layer
    imported = train.from_ is not None

    def kept_at(name: str) -> Path | None:
        return work / name if work else None

    sections: dict[str, Callable[[], Any]] = {
        "core": lambda: core(sae, activations, row_document[-1], np.random.default_rng([seed, layer])),
        "redundancy": lambda: redundancy(sae, knobs.seeds, generator(seed, "redundancy", layer)),
        "probing": lambda: _probing(sae, source, np.concatenate(row_document), knobs.probing, knobs.seeds, seed),
        "tasks": lambda: _tasks(sae, source, knobs.tasks, seed, processes, kept_at("tasks")),
        "rules": lambda: _rules(sae, source, knobs.rules, seed),
    }

    if knobs.letters:
        sections["letters"] = lambda: _letters(sae, source, knobs.letters, seed)
    if knobs.meta:
        seeds = range(seed, seed + knobs.meta)
        sections["meta"] = lambda: meta(sae.decoder, train, seeds, generator(seed, "meta", layer), kept_at("meta"))
    if knobs.absorption:
        absorption_seeds = range(seed, seed + knobs.absorption)
        sections["absorption"] = lambda: (
            {"why": GIVEN} if imported else absorption(train, absorption_seeds, kept_at("absorption"))
        )

    shown = each(sections.items(), "measure", "sections")
    results = {name: resume.once_json(kept_at(f"{name}.json"), make) for name, make in shown}
    intervals = {name: INTERVALS[name] for name in results}
    return {"layer": layer, "seeds": knobs.seeds, "intervals": intervals, **results}


def _probing(
    sae: SAE, source: Source, row_document: np.ndarray, knobs: Probing, seeds: int, seed: int
) -> dict[str, Any]:
    """Make the section probing, or say why there is none.

    ``row_document``: (row,) the document of each stored row. ``seeds``: how many splits of the documents there are.
    """
    labels = source.labels
    chosen = np.array([n for n in np.unique(row_document) if labels[n] is not None][: knobs.documents], np.int64)
    names = [str(labels[n]) for n in chosen]
    tasks = probing.commonest(names, knobs.least, knobs.labels)
    if not tasks:
        too_few = f"no label has {knobs.least} of the documents that were extracted, and as many without it"
        return {"why": too_few if knobs.labels else "evaluate.probing.labels is 0"}

    parts = documents.Parts(source.activations, documents.places(row_document, chosen, knobs.tokens), sae.b_dec.device)
    if not bool(sae.encode(next(iter(parts))[0]).active().any()):
        return {"why": "no latent is active on the first documents; the SAE may be of another scale or layer"}

    # What is probed, (document, column) each: the SAE, its twins, an untrained one, the activations, their components.
    random = documents.untrained(sae, next(iter(parts))[0], generator(seed, "untrained", source.activations.layer))
    means = documents.pooled({"sae": sae, **source.twins, "untrained": random}, parts, len(chosen))
    mean = source.activations.mean.to(sae.b_dec.device)
    basis = principal((x for x, _ in parts), mean).cpu().numpy()
    columns = {**means, "pca": (means["residual"] - source.activations.mean.numpy()) @ basis}
    result = probing.probing(columns, names, tasks, knobs.k, knobs.held_out, range(seed, seed + seeds))
    return {"documents": len(chosen), "tasks": len(tasks), **result}


def _tasks(sae: SAE, source: Source, knobs: Tasks, seed: int, processes: int, work: Path | None) -> dict[str, Any]:
    """Make the section tasks, or say why there is none."""
    if source.prompts is None:
        return {"why": "there are no tasks for this layer, or no language model that reads their prompts"}

    random = _untrained(sae, source, seed)
    replicas = {f"seed {number}": replica for number, replica in source.replicas.items()}
    judged = Judged(source.prompts, source.tasks, {OWN: sae, UNTRAINED: random, **source.twins}, replicas)
    return judge(judged, knobs, seed, processes, work)


def _rules(sae: SAE, source: Source, knobs: TokenRules, seed: int) -> dict[str, Any]:
    """Make the section rules, or say why there is none."""
    if not source.activations.of_tokens:
        return {"why": "rows are documents, which have no tokens that a rule could name"}
    if not knobs.latents:
        return {"why": "evaluate.rules.latents is 0"}
    others = {**source.twins, UNTRAINED: _untrained(sae, source, seed)}
    return token_rules(sae, others, source.activations, source.contexts, knobs, seed)


def _letters(sae: SAE, source: Source, words: int, seed: int) -> dict[str, Any]:
    """Make the section letters, or say why there is none."""
    if source.pieces is None:
        return {"why": "rows are documents, which have no tokens that begin with a letter"}
    controls = {**source.twins, UNTRAINED: _untrained(sae, source, seed)}
    return letters.absorption(sae, controls, source.activations, source.contexts, source.pieces, words, seed)


def _untrained(sae: SAE, source: Source, seed: int) -> SAE:
    """Make an untrained SAE that is as sparse as the trained one on the text that this one was trained on."""
    x = next(blocks(source.activations, *source.activations.split("train"), sae.b_dec.device)).float()
    return documents.untrained(sae, x, generator(seed, "untrained", source.activations.layer))
