"""Stage cluster@L: families of latents, and the ones that later stages work on."""

from pathlib import Path

from stages import params
from stages.cluster import cluster as room
from stages.cluster.knobs import Cluster
from stages.door import run
from stages.extract.shards import open_contexts
from stages.fetch import read
from stages.files import write_json, write_skipped
from stages.finished import kept
from stages.interpret.read import interpreted, of_stored_rows, open_latents
from stages.machine import CPU, Machine, need_memory, start
from stages.sae import disk


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


if __name__ == "__main__":
    run(kept(main))
