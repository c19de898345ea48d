"""Stage steer_eval@L: steer with a layer's latents, and measure what that does beside baselines."""

from pathlib import Path

from stages import params
from stages.cluster.read import clustered, open_clusters
from stages.door import run
from stages.extract.shards import check_origin, open_activations, open_contexts
from stages.fetch import read
from stages.files import write_json
from stages.interpret.read import of_stored_rows, open_latents
from stages.lm import DTYPES, load
from stages.machine import Machine, start
from stages.sae import disk
from stages.steer_eval import steer_eval as room
from stages.steer_eval.knobs import SteerEval


def main(
    activations: str, tokens: str, sae: str, lm: str, latents: str, clusters: str, target: str, report: str
) -> None:
    """ACTIVATIONS of a layer, TOKENS, its SAE, the LM, LATENTS, CLUSTERS -> what steering does in TARGET, REPORT."""
    knobs = params.load("steer_eval", SteerEval)
    rows = open_activations(Path(activations))
    if not knobs.run or rows.layer not in knobs.layers or not of_stored_rows(Path(latents)):
        for path in (Path(target) / "meta.json", Path(report)):
            write_json(path, {"skipped": True})
        return
    contexts = open_contexts(Path(tokens))
    check_origin(rows, contexts, read.model_facts(read.lm_meta(Path(lm))))
    coder, _ = disk.load(Path(sae))
    selected = open_clusters(Path(clusters)).selected if clustered(Path(clusters)) else []
    device = start(params.load("machine", Machine))
    model, options = read.lm_path(Path(lm))
    loaded = load(model, DTYPES[rows.meta["forward"]], device, **options)
    source = room.Source(rows, contexts, open_latents(Path(latents)), selected, loaded)
    seed = params.load("seed", int)
    write_json(Path(report), room.steer_eval(coder.to(device), source, knobs, seed, Path(target)))


if __name__ == "__main__":
    run(main)
