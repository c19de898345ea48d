"""Stage stability@L: train the SAE again with other seeds, and say of each latent how often it comes again."""

from functools import partial
from pathlib import Path
from typing import Any

from stages.train.settings import of_layer
from strata.corpus import read
from strata.device.machine import CPU, Machine, need_memory, start
from strata.lm.model import DTYPES, load
from strata.replication.knobs import Stability
from strata.replication.read import LATENTS, POOLED, POOLED_SCHEMA, SCHEMA
from strata.replication.replication import Replicated, Source, replicate
from strata.rows.shards import open_layer
from strata.run import files, params, resume
from strata.run.files import write_json, write_skipped
from strata.sae import disk
from strata.training.knobs import GIVEN
from strata.verdict.targets import settled


def main(activations: str, tokens: str, lm: str, sae: str, tuned: str, override: str, target: str, report: str) -> None:
    """ACTIVATIONS of a layer, TOKENS, the LM, the SAE, train's knobs TUNED and OVERRIDE -> certificates of the latents
    and SAEs in TARGET, and REPORT.

    Example: dvc repro stability@9
    """
    knobs = params.load("stability", Stability)
    if not knobs.seeds:  # as by default, so that nothing is said about it
        for path in (Path(target) / "meta.json", Path(report)):
            write_json(path, {"skipped": True})
        return

    model = read.lm_meta(Path(lm))
    rows, contexts = open_layer(Path(activations), Path(tokens), read.model_facts(model))

    # The knobs with which train made this layer's SAE: the others are to be like it.
    size = rows.size
    train = of_layer(rows.layer, size, Path(tuned), Path(override)).knobs
    if train.from_ is not None:
        write_skipped(Path(target), Path(report), GIVEN)
        return
    targets = settled(params.load("targets", dict), size.kind, train.k)
    coder, config = disk.load(Path(sae))

    machine, seed = params.load("machine", Machine), params.load("seed", int)
    device = start(machine)
    what = f"stability, of {coder.latents:,} latents and {knobs.seeds} seeds,"
    need_memory(
        knobs.held_bytes(coder.latents, coder.width), CPU, what, "set stability.pool: false, or lower stability.seeds"
    )

    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "contexts": contexts.meta,
        "sae": disk.fingerprint(Path(sae)),
        "stability": knobs.model_dump(),
        "train": train.model_dump(),
        "targets": targets.model_dump(),
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    name, options = read.lm_path(Path(lm))
    with resume.scratch(f"stability-{rows.layer}", inputs) as work:
        loading = partial(load, name, DTYPES[rows.meta["forward"]], device, **options)
        speaks = knobs.ce_tokens and not read.speechless(model)
        source = Source(rows, contexts, train, targets)
        replicated = replicate(coder.to(device), source, knobs, seed, loading if speaks else None, work)
        _write(replicated, config["metadata"], seed, Path(target), Path(report))


def _write(replicated: Replicated, metadata: dict[str, Any], seed: int, target: Path, report: Path) -> None:
    """Write the SAEs, the certificates and the report.

    ``metadata``: of the layer's own SAE, in its `cfg.json`. ``seed``: with which that one was trained.
    """
    for other_seed, sae in replicated.saes.items():
        density = replicated.densities[other_seed]
        disk.save(target / str(other_seed), sae, {**metadata, "l0": float(density.sum())}, density)
    files.write_table(target / LATENTS, replicated.certificates, SCHEMA)

    if (pooled := replicated.pooled) is not None:
        l0 = replicated.report["pooled"]["test"]["pooled"]["l0"]
        disk.save(target / "pooled", pooled.sae, {**metadata, "l0": l0}, pooled.density)
        files.write_table(target / POOLED, pooled.chosen.table([seed, *replicated.saes]), POOLED_SCHEMA)

    facts = {name: replicated.report[name] for name in ("layer", "latents", "seeds", "thresholds")}
    write_json(target / "meta.json", {**facts, "files": files.hashes(target)})
    write_json(report, replicated.report)
