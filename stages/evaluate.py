"""Stage evaluate@L: measure what others measure of an SAE, beside chance and beside the activations themselves."""

from pathlib import Path

from strata import auto
from strata.corpus import read
from strata.device.machine import Machine, need_memory, start
from strata.evaluation import evaluate as evaluation
from strata.evaluation.knobs import Evaluate
from strata.rows.shards import check_origin, open_activations, open_contexts
from strata.run import params, resume
from strata.run.files import read_json, write_json
from strata.sae import disk
from strata.sae.training import training
from strata.tuning.read import taken
from strata.verdict.targets import settled


def main(activations: str, tokens: str, corpus: str, sae: str, tuned: str, override: str, report: str) -> None:
    """ACTIVATIONS of a layer, TOKENS, CORPUS with its labels, the SAE, train's knobs TUNED and OVERRIDE -> REPORT.

    Example: dvc repro evaluate@9
    """
    knobs = params.load("evaluate", Evaluate)
    if not knobs.run:
        write_json(Path(report), {"skipped": True})
        return

    rows, contexts = open_activations(Path(activations)), open_contexts(Path(tokens))
    check_origin(rows, contexts, rows.meta["model"])
    coder, _ = disk.load(Path(sae))
    _, labels = read.titles(Path(corpus))

    # The knobs with which train made this layer's SAE: some measures train SAEs like it.
    section, size = params.load("train", dict), auto.size_of(rows.meta)
    from_tune = taken(Path(tuned), training.knobs_of(section, {}, {}, rows.layer, size).from_tune)
    train_knobs = training.knobs_of(section, from_tune, read_json(Path(override)), rows.layer, size)
    targets = settled(params.load("targets", dict), size.kind, train_knobs.k)
    source = evaluation.Source(rows, contexts, labels, train_knobs, targets)

    machine, seed = params.load("machine", Machine), params.load("seed", int)
    device = start(machine)
    need_memory(
        knobs.held_bytes(coder.latents),
        device,
        f"evaluate.stability, of {coder.latents:,} latents,",
        "train fewer latents, or set evaluate.stability: 0",
    )

    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "sae": disk.fingerprint(Path(sae)),
        "labels": labels,
        "evaluate": knobs.model_dump(),
        "train": train_knobs.model_dump(),
        "targets": targets.model_dump(),
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    with resume.scratch(f"evaluate-{rows.layer}", inputs) as work:
        write_json(Path(report), evaluation.evaluate(coder.to(device), source, knobs, seed, work))
