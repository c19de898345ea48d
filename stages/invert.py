"""Stage invert@L: prompts that maximise latents, measured again on their own text."""

from pathlib import Path

from stages.select import layers
from strata.corpus import read
from strata.device.machine import Machine, start
from strata.families.read import selected
from strata.interpretation.read import check_origin, chosen, interpreted, open_latents
from strata.inversion import invert as room
from strata.inversion import write
from strata.inversion.knobs import Invert
from strata.lm.model import DTYPES, load, mute
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
    why = read.speechless(model)
    known = open_latents(Path(latents)) if knobs.run and interpreted(Path(latents)) else None
    layer = known.meta["layer"] if known else None
    if why or known is None or layer not in layers.chosen(knobs.layers, layer, Path(last)):
        write_skipped(Path(target), Path(report), why)
        return

    knobs = knobs.model_copy(update={"layers": knobs.layers or [layer]})
    coder, _ = disk.load(Path(sae))
    check_origin(known, (coder.latents, coder.width), read.model_facts(model))
    maxima = chosen(known, knobs.latents, selected(Path(clusters)), "invert.latents")
    seed, machine = params.load("seed", int), params.load("machine", Machine)
    device = start(machine)
    source, options = read.lm_path(Path(lm))
    loaded = load(source, DTYPES[knobs.dtype], device, **options)
    if why := mute(loaded):
        write_skipped(Path(target), Path(report), why)
        return

    facts = {
        "latents": known.meta,
        "sae": disk.fingerprint(Path(sae)),
        "maxima": sorted(maxima.items()),
        "invert": knobs.model_dump(),
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    with resume.scratch(f"invert-{known.meta['layer']}", facts) as work:
        found = room.invert(room.Source(loaded, coder.to(device), known), maxima, knobs, seed, work)
    meta = {name: known.meta[name] for name in ("layer", "hook", "model")}
    write.write(Path(target), found, {**meta, "seed": seed, "invert": knobs.model_dump()})
    write_json(Path(report), room.report(known.meta["layer"], found))
