"""Stage steer_eval@L: steer with a layer's latents, and measure what that does beside baselines."""

from pathlib import Path

from stages.select import layers
from strata.corpus import read
from strata.device.machine import Machine, start
from strata.families.read import selected
from strata.interpretation import read as interpretation
from strata.lm.model import DTYPES, load, mute
from strata.rows.shards import open_layer
from strata.run import params, resume
from strata.run.files import write_json, write_skipped
from strata.sae import disk
from strata.steering import steer_eval as steering
from strata.steering.knobs import SteerEval
from strata.twins.load import comparable


def main(
    activations: str,
    tokens: str,
    other_activations: str,
    other_tokens: str,
    sae: str,
    lm: str,
    controls: str,
    latents: str,
    clusters: str,
    last: str,
    target: str,
    report: str,
) -> None:
    """ACTIVATIONS of a layer and TOKENS, the same two for the OTHER texts of interpret.texts, the layer's SAE, the LM,
    the SAE's twins in CONTROLS, LATENTS, CLUSTERS, and whether the layer is the LAST one -> what steering does in
    TARGET, REPORT.

    All is measured on the texts that interpret looked at.

    Example: dvc repro steer_eval@9
    """
    knobs = params.load("steer_eval", SteerEval)
    meta = read.lm_meta(Path(lm))
    model = read.model_facts(meta)
    if interpretation.interpreted(Path(latents)) and not interpretation.of_stored_rows(Path(latents)):
        activations, tokens = other_activations, other_tokens

    rows, contexts = open_layer(Path(activations), Path(tokens), model)
    reason = read.speechless(meta)
    steered = layers.chosen(knobs.layers, rows.layer, Path(last))
    if reason or not knobs.run or rows.layer not in steered or not interpretation.interpreted(Path(latents)):
        write_skipped(Path(target), Path(report), reason)
        return

    knobs = knobs.model_copy(update={"layers": steered})
    coder, _ = disk.load(Path(sae))
    interpreted = interpretation.open_latents(Path(latents))
    interpretation.check_origin(interpreted, (coder.latents, coder.width), model)

    if not steering.applicable(interpreted):
        reason = "interpret.logits is 0, or interpret cannot read this model's last steps"
        write_skipped(Path(target), Path(report), f"not applicable: {latents} names no tokens, for {reason}")
        return

    maxima = interpretation.chosen(interpreted, knobs.latents, selected(Path(clusters)), "steer_eval.latents")
    machine = params.load("machine", Machine)
    device = start(machine)
    name, options = read.lm_path(Path(lm))
    loaded = load(name, DTYPES[rows.meta["forward"]], device, **options)
    if reason := mute(loaded):
        write_skipped(Path(target), Path(report), reason)
        return

    twins = {name: twin.to(device) for name, twin in comparable(Path(controls)).items()}
    source = steering.Source(rows, contexts, interpreted, maxima, loaded, twins)
    seed = params.load("seed", int)
    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "sae": disk.fingerprint(Path(sae)),
        "twins": {name: disk.fingerprint(Path(controls) / name) for name in twins},
        "latents": interpreted.meta,
        "chosen": sorted(maxima.items()),
        "steer_eval": knobs.model_dump(),
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    with resume.scratch(f"steer_eval-{rows.layer}", inputs) as work:
        write_json(Path(report), steering.steer_eval(coder.to(device), source, knobs, seed, Path(target), work))
