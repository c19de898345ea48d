"""Stage cluster@L: find families of latents, and select the latents that later stages work on."""

from pathlib import Path

from strata.corpus import read
from strata.device.machine import CPU, Machine, need_memory, start
from strata.families import cluster as families
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
        of_other_texts = knobs.run and interpreted(Path(latents))
        reason = f"for {latents} is of other texts (params.yaml: interpret.texts)" if of_other_texts else None
        write_skipped(Path(target), Path(report), reason)
        return
    seed = params.load("seed", int)
    start(params.load("machine", Machine))

    coder, _ = disk.load(Path(sae))
    titles, labels = read.titles(Path(corpus))
    source = families.source(open_latents(Path(latents)), coder.decoder, open_contexts(Path(tokens)), titles, labels)
    living = len(source.living)
    need_memory(
        knobs.held_bytes(living),
        CPU,
        f"cluster, of {living:,} living latents,",
        "train fewer latents, or set cluster.run: false",
    )

    write_json(Path(report), families.cluster(source, knobs, seed, Path(target)))
