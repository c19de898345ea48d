"""Stage merge@L: make a smaller dictionary and refit its decoder, beside dropping latents instead."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from strata.corpus import read
from strata.device.machine import CPU, Machine, need_memory, start
from strata.families.read import clustered, open_clusters
from strata.interpretation.read import open_latents
from strata.lm.model import DTYPES, load
from strata.merging import merge as merging
from strata.merging.knobs import Merge
from strata.merging.read import GROUPS, SCHEMA
from strata.rows.shards import open_layer
from strata.run import files, params, resume
from strata.run.files import write_json, write_skipped, write_text
from strata.sae import disk


def main(
    activations: str, tokens: str, sae: str, latents: str, clusters: str, lm: str, target: str, report: str, curve: str
) -> None:
    """ACTIVATIONS of a layer, TOKENS, its SAE, LATENTS, CLUSTERS and the LM -> an SAE in TARGET, REPORT and CURVE.

    Example: dvc repro merge@9
    """
    knobs = params.load("merge", Merge)
    if not knobs.run or not clustered(Path(clusters)):
        write_skipped(Path(target), Path(report))
        write_text(Path(curve), merging.curve_csv([]))
        return

    model = read.lm_meta(Path(lm))
    rows, contexts = open_layer(Path(activations), Path(tokens), read.model_facts(model))
    source = merging.Source(rows, contexts, open_latents(Path(latents)), open_clusters(Path(clusters)))
    coder, config = disk.load(Path(sae))
    merging.check(coder, source)

    machine = params.load("machine", Machine)
    device = start(machine)
    need_memory(
        knobs.held_bytes(coder.latents),
        CPU,
        f"merge, of {coder.latents:,} latents,",
        "train fewer latents, or set merge.run: false",
    )
    name, options = read.lm_path(Path(lm))

    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "contexts": contexts.meta,
        "sae": disk.fingerprint(Path(sae)),
        "latents": source.latents.meta,
        "clusters": source.clusters.meta,
        "labels": source.clusters.labels.tolist(),
        "merge": knobs.model_dump(),
        "machine": [device.type, machine.threads],
    }
    # Loading the model takes three seconds. A second thread does it, while merge sums over the rows.
    with resume.scratch(f"merge-{rows.layer}", inputs) as work, ThreadPoolExecutor(1) as loader:
        loading = partial(load, name, DTYPES[rows.meta["forward"]], device, **options)
        loaded = loader.submit(loading).result if knobs.ce_tokens and not read.speechless(model) else None
        merged = merging.merge(coder.to(device), source, knobs, loaded, device, work)

        metadata = {**config["metadata"], "l0": merged.report["test"]["after"]["l0"]}
        files.write_table(Path(target) / GROUPS, merged.groups.table(), SCHEMA)
        disk.save(Path(target), merged.sae, metadata, merged.density)
        write_json(Path(report), merged.report)
        write_text(Path(curve), merging.curve_csv(merged.report["curve"]))
