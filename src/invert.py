"""Stage invert@L: prompts that maximise latents, measured again on their own text."""

from pathlib import Path

from stages import params, resume
from stages.cluster.read import selected
from stages.door import run
from stages.fetch import read
from stages.files import write_json, write_skipped
from stages.finished import kept
from stages.interpret.read import check_origin, chosen, interpreted, open_latents
from stages.invert import invert as room
from stages.invert import write
from stages.invert.knobs import Invert
from stages.lm import DTYPES, load, mute
from stages.machine import Machine, start
from stages.sae import disk


def main(sae: str, lm: str, latents: str, clusters: str, target: str, report: str) -> None:
    """SAE, LM, LATENTS and CLUSTERS of a layer -> prompts that its latents fire on in TARGET, and REPORT.

    Example: dvc repro invert@9
    """
    knobs = params.load("invert", Invert)
    model = read.lm_meta(Path(lm))
    why = read.speechless(model)
    known = open_latents(Path(latents)) if knobs.run and interpreted(Path(latents)) else None
    if why or known is None or known.meta["layer"] not in knobs.layers:
        write_skipped(Path(target), Path(report), why)
        return

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


if __name__ == "__main__":
    run(kept(main))
