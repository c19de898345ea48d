"""Stage invert@L: search prompts that maximise latents, and measure them again on their own text."""

from pathlib import Path

from stages.select import layers
from strata.corpus import read
from strata.device.machine import Machine, start
from strata.families.read import selected
from strata.interpretation.read import check_origin, chosen, interpreted, open_latents
from strata.inversion import invert as inversion
from strata.inversion import write
from strata.inversion.knobs import Invert
from strata.lm.model import DTYPES, forward_dtype, load, mute
from strata.run import params, resume
from strata.run.files import write_json, write_skipped
from strata.sae import disk


def main(sae: str, lm: str, latents: str, clusters: str, last: str, target: str, report: str) -> None:
    """SAE, LM, LATENTS and CLUSTERS of a layer, and whether it is the LAST one -> prompts that its latents fire on in
    TARGET, and REPORT.

    Example: dvc repro invert@9
    """
    knobs = params.load("invert", Invert)
    model = read.lm_meta(Path(lm))
    reason = read.speechless(model)
    interpretation = open_latents(Path(latents)) if knobs.run and interpreted(Path(latents)) else None
    if reason or interpretation is None:
        write_skipped(Path(target), Path(report), reason)
        return

    layer = interpretation.meta["layer"]
    inverted = layers.chosen(knobs.layers, layer, Path(last))
    if layer not in inverted:
        write_skipped(Path(target), Path(report), None)
        return

    knobs = knobs.model_copy(update={"layers": inverted})
    coder, _ = disk.load(Path(sae))
    check_origin(interpretation, (coder.latents, coder.width), read.model_facts(model))
    maxima = chosen(interpretation, knobs.latents, selected(Path(clusters)), "invert.latents")

    seed, machine = params.load("seed", int), params.load("machine", Machine)
    device = start(machine)
    knobs = knobs.model_copy(update={"dtype": forward_dtype(knobs.dtype, device)})
    name, options = read.lm_path(Path(lm))
    loaded = load(name, DTYPES[knobs.dtype], device, **options)
    if reason := mute(loaded):
        write_skipped(Path(target), Path(report), reason)
        return

    inputs = {  # unfinished work of other inputs is not used
        "latents": interpretation.meta,
        "sae": disk.fingerprint(Path(sae)),
        "maxima": sorted(maxima.items()),
        "invert": knobs.model_dump(),
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    with resume.scratch(f"invert-{layer}", inputs) as work:
        source = inversion.Source(loaded, coder.to(device), interpretation)
        prompts = inversion.invert(source, maxima, knobs, seed, work)

    meta = {name: interpretation.meta[name] for name in ("layer", "hook", "model")}
    write.write(Path(target), prompts, {**meta, "seed": seed, "invert": knobs.model_dump()})
    write_json(Path(report), inversion.report(layer, prompts))
