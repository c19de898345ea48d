"""Stage evaluate@L: what peers measure of an SAE, beside chance and beside the activations themselves."""

from pathlib import Path

from strata import auto
from strata.corpus import read
from strata.device.machine import Machine, need_memory, start
from strata.evaluation import evaluate as room
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

    section, size = params.load("train", dict), auto.size_of(rows.meta)
    best = taken(Path(tuned), training.knobs_of(section, {}, {}, rows.layer, size).from_tune)
    recipe = training.knobs_of(section, best, read_json(Path(override)), rows.layer, size)
    targets = settled(params.load("targets", dict), size.kind, recipe.k)
    source = room.Source(rows, contexts, labels, recipe, targets)

    machine, seed = params.load("machine", Machine), params.load("seed", int)
    device = start(machine)
    held, what = knobs.held_bytes(coder.latents), f"evaluate.stability, of {coder.latents:,} latents,"
    need_memory(held, device, what, "train fewer latents, or set evaluate.stability: 0")

    belongs = {
        "activations": rows.meta,
        "sae": disk.fingerprint(Path(sae)),
        "labels": labels,
        "evaluate": knobs.model_dump(),
        "train": recipe.model_dump(),
        "targets": source.targets.model_dump(),
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    with resume.scratch(f"evaluate-{rows.layer}", belongs) as work:
        write_json(Path(report), room.evaluate(coder.to(device), source, knobs, seed, work))
