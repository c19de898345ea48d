"""What a plan knows of an SAE that is given (`train.from`), from its `cfg.json`: no weight is read."""

from pathlib import Path

from strata.run.files import read_json
from strata.run.resume import main_root
from strata.sae import disk
from strata.training.knobs import Train


def described(knobs: Train) -> Train:
    """``knobs`` with the given SAE's latents, its k (with thresholds, its l0, where it says so), and what its decoder
    ends in. As they are where an SAE is trained, or the folder is not here yet."""
    if knobs.from_ is None:
        return knobs
    paths = [place / knobs.from_.folder / disk.CONFIG for place in (Path(), main_root())]
    path = next((path for path in paths if path.is_file()), None)
    config = read_json(path) if path else None
    if not isinstance(config, dict) or config.get("architecture") not in disk.ARCHITECTURES:
        return knobs
    rule, ending = disk.ARCHITECTURES[config["architecture"]]
    active = config.get("k") if rule == "topk" else (config.get("metadata") or {}).get("l0")
    sizes = {"latents": config.get("d_sae"), "k": active}
    known = {name: max(1, round(size)) for name, size in sizes.items() if isinstance(size, int | float)}
    return knobs.model_copy(update={"rule": rule, "decoder_activation": ending, **known})
