"""Stage controls@L: train twins of a layer's SAE with a part held at random, and judge them beside it."""

import sys
from pathlib import Path
from typing import Any

import torch

from stages.select import layers
from stages.train import judge, origin
from stages.train.settings import of_layer
from strata.corpus import read
from strata.device.machine import Machine, keep_memory, start
from strata.extraction.knobs import Extract
from strata.rows.shards import DTYPE, Activations, Contexts, open_layer
from strata.run import params, resume
from strata.run.files import need_disk, sha256, write_json, write_skipped
from strata.sae import disk
from strata.twins import random_model, twins
from strata.twins.knobs import Controls, barred
from strata.verdict.targets import CHECKPOINT, ELSEWHERE, Twin, settled


def main(
    activations: str, tokens: str, lm: str, tuned: str, override: str, last: str, sae: str, target: str, report: str
) -> None:
    """ACTIVATIONS of a layer, their TOKENS, the LM, train's knobs TUNED and OVERRIDE, whether it is the LAST layer, and
    its SAE -> the SAE's twins in TARGET, and REPORT.

    Example: dvc repro controls@9
    """
    knobs = params.load("controls", Controls)
    if not knobs.run:
        write_skipped(Path(target), Path(report))
        return
    rows, contexts = open_layer(Path(activations), Path(tokens), read.model_facts(read.lm_meta(Path(lm))))
    if rows.layer not in layers.chosen(knobs.layers, rows.layer, Path(last)):
        write_skipped(Path(target), Path(report))
        return

    # The knobs with which train made this layer's SAE. A twin that they do not allow is left out, and said to be.
    size = rows.size
    train = of_layer(rows.layer, size, Path(tuned), Path(override)).knobs
    reasons = {twin: barred(twin, train) for twin in knobs.twins}
    speaks = not read.speechless(read.lm_meta(Path(lm)))
    if not speaks and "random_model" in reasons:
        reasons["random_model"] = "there is no language model to draw the weights of"
    left_out = {twin: reason for twin, reason in reasons.items() if reason is not None}
    wanted: list[Twin] = [twin for twin in knobs.twins if twin not in left_out]
    for twin, reason in left_out.items():
        sys.stderr.write(f"controls: layer {rows.layer} has no {twin}: {reason}\n")

    targets, seed = settled(params.load("targets", dict), size.kind, train.k), params.load("seed", int)
    machine = params.load("machine", Machine)
    device = start(machine)
    keep_memory()

    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "sae": disk.fingerprint(Path(sae)),
        "twins": wanted,
        "train": train.model_dump(),
        "targets": {name: bound.model_dump() for name, bound in targets.bounds.items() if name in CHECKPOINT},
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    with resume.scratch(f"controls-{rows.layer}", inputs) as work:
        rows_of = dict.fromkeys(wanted, rows)
        if "random_model" in wanted:
            rows_of["random_model"] = _random_rows(Path(lm), rows, contexts, device, seed, work / "random")
        fitted = {
            twin: twins.train_twin(twin, rows_of[twin], train, targets, seed, work / twin, machine.save_every, device)
            for twin in wanted
        }

        # Judge on the SAE's own rows, side by side; a twin of other rows alone.
        coder = disk.load(Path(sae))[0].to(device)
        saes = {twin: training.best for twin, training in fitted.items() if twin not in ELSEWHERE}
        judged, frequencies = {}, {}
        if saes:
            model = judge.speaking(Path(lm), rows.meta["forward"], device) if train.ce_tokens else None
            judged, frequencies = twins.measure(coder, saes, rows, contexts, model, train.ce_tokens, seed)
        for twin in wanted:
            if twin in ELSEWHERE:
                alone = twins.measure_elsewhere(fitted[twin].best, rows_of[twin], contexts)
                judged[twin], frequencies[twin] = alone

        results: dict[str, Any] = {}
        for twin in wanted:
            training = fitted[twin]
            folder = Path(target) / twin
            metadata = origin.metadata(rows_of[twin], contexts, train, judged[twin]["test"]["l0"], None)
            disk.save(folder, training.best, {**metadata, "twin": twin}, frequencies[twin])
            best = {"step": training.best_step, "score": training.best_score}
            results[twin] = {**judged[twin], "best": best, "weights": sha256(folder / disk.WEIGHTS)}
        write_json(Path(target) / "meta.json", {"layer": rows.layer, "twins": wanted})
        write_json(Path(report), {"layer": rows.layer, "twins": results, "left_out": left_out})


def _random_rows(
    lm: Path, rows: Activations, contexts: Contexts, device: torch.device, seed: int, work: Path
) -> Activations:
    """Write the activations of the model with random weights into ``work``, where ``rows`` are those of the model."""
    need_disk(work.parent, rows.rows * rows.width * DTYPE.itemsize, "controls.twins: random_model")
    model = judge.speaking(lm, rows.meta["forward"], device)
    assert model is not None, "without a language model there is no such twin"
    as_extracted = {"hook": rows.meta["hook"], "dtype": rows.meta["forward"]}
    knobs = params.load("extract", Extract).model_copy(update=as_extracted)
    return random_model.activations(model, contexts, rows, knobs, seed, work)
