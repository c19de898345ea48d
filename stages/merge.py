"""Stage merge@L: a smaller dictionary, its decoder refitted, beside dropping latents instead."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from strata.corpus import read
from strata.device.machine import CPU, Machine, need_memory, start
from strata.families.read import clustered, open_clusters
from strata.interpretation.read import open_latents
from strata.lm.model import DTYPES, load
from strata.merging import merge as room
from strata.merging.knobs import Merge
from strata.merging.read import GROUPS, SCHEMA
from strata.rows.shards import check_origin, open_activations, open_contexts
from strata.run import params, resume
from strata.run.files import write_json, write_skipped, write_text
from strata.sae import disk
from strata.tables import parquet


def main(
    activations: str, tokens: str, sae: str, latents: str, clusters: str, lm: str, target: str, report: str, curve: str
) -> None:
    """ACTIVATIONS of a layer, TOKENS, its SAE, LATENTS, CLUSTERS and the LM -> an SAE in TARGET, REPORT and CURVE.

    Example: dvc repro merge@9
    """
    knobs = params.load("merge", Merge)
    if not knobs.run or not clustered(Path(clusters)):
        write_skipped(Path(target), Path(report))
        write_text(Path(curve), room.curve_csv([]))
        return

    rows, contexts = open_activations(Path(activations)), open_contexts(Path(tokens))
    facts = read.lm_meta(Path(lm))
    check_origin(rows, contexts, read.model_facts(facts))
    source = room.Source(rows, contexts, open_latents(Path(latents)), open_clusters(Path(clusters)))
    coder, config = disk.load(Path(sae))
    room.check(coder, source)

    machine = params.load("machine", Machine)
    device = start(machine)
    held, what = knobs.held_bytes(coder.latents), f"merge, of {coder.latents:,} latents,"
    need_memory(held, CPU, what, "train fewer latents, or set merge.run: false")
    model, options = read.lm_path(Path(lm))

    belongs = {
        "activations": rows.meta,
        "contexts": contexts.meta,
        "sae": disk.fingerprint(Path(sae)),
        "latents": source.latents.meta,
        "clusters": source.clusters.meta,
        "labels": source.clusters.labels.tolist(),
        "merge": knobs.model_dump(),
        "machine": [device.type, machine.threads],
    }
    # Loading takes three seconds, in which the sums over the rows are made.
    with resume.scratch(f"merge-{rows.layer}", belongs) as work, ThreadPoolExecutor(1) as aside:
        loading = partial(load, model, DTYPES[rows.meta["forward"]], device, **options)
        loaded = aside.submit(loading).result if knobs.ce_tokens and not read.speechless(facts) else None
        merged = room.merge(coder.to(device), source, knobs, loaded, device, work)
        metadata = {**config["metadata"], "l0": merged.report["test"]["after"]["l0"]}
        parquet.write(Path(target) / GROUPS, merged.groups.table(), SCHEMA)
        disk.save(Path(target), merged.sae, metadata, merged.density)
        write_json(Path(report), merged.report)
        write_text(Path(curve), room.curve_csv(merged.report["curve"]))
