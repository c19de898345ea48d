"""Stage cluster@L: families of latents, and the ones that later stages work on."""

from pathlib import Path

from strata.corpus import read
from strata.device.machine import CPU, Machine, need_memory, start
from strata.families import cluster as room
from strata.families.knobs import Cluster
from strata.interpretation.read import interpreted, of_stored_rows, open_latents
from strata.rows.shards import open_contexts
from strata.run import params
from strata.run.files import write_json, write_skipped
from strata.sae import disk


def main(tokens: str, corpus: str, sae: str, latents: str, target: str, report: str) -> None:
    """TOKENS, CORPUS, SAE and LATENTS of a layer -> its families in TARGET, and REPORT.

    Example: dvc repro cluster@9
    """
    knobs = params.load("cluster", Cluster)
    if not knobs.run or not of_stored_rows(Path(latents)):
        others = knobs.run and interpreted(Path(latents))
        why = f"for {latents} is of other texts (params.yaml: interpret.texts)" if others else None
        write_skipped(Path(target), Path(report), why)
        return
    seed = params.load("seed", int)
    start(params.load("machine", Machine))
    coder, _ = disk.load(Path(sae))
    source = room.source(
        open_latents(Path(latents)), coder.decoder, open_contexts(Path(tokens)), *read.titles(Path(corpus))
    )
    held, what = knobs.held_bytes(len(source.living)), f"cluster, of {len(source.living):,} living latents,"
    need_memory(held, CPU, what, "train fewer latents, or set cluster.run: false")
    write_json(Path(report), room.cluster(source, knobs, seed, Path(target)))
