"""Read the sizes of an imported SAE (`train.from`) from its `cfg.json`; no weight is read."""

from strata.run.files import read_json
from strata.run.resume import places
from strata.sae import disk
from strata.training.knobs import Train


def with_imported_sizes(knobs: Train) -> Train:
    """Return ``knobs`` with the rule, the number of latents, the k and the decoder's activation of the imported SAE.

    For an SAE with thresholds, k is its l0, if cfg.json states one. The knobs stay as they are where an SAE is trained,
    and where the folder of the imported one is not here yet.
    """
    if knobs.from_ is None:
        return knobs

    paths = [place / disk.CONFIG for place in places(knobs.from_.folder)]
    path = next((path for path in paths if path.is_file()), None)
    config = read_json(path) if path else None
    config = config if isinstance(config, dict) else {}
    kind, metadata = str(config.get("architecture")), config.get("metadata")
    if kind not in disk.ARCHITECTURES:
        return knobs

    rule, decoder_activation = disk.ARCHITECTURES[kind]
    l0 = metadata.get("l0") if isinstance(metadata, dict) else None
    active_latents = config.get("k") if rule == "topk" else l0
    sizes = {"latents": config.get("d_sae"), "k": active_latents}
    known = {name: max(1, round(size)) for name, size in sizes.items() if isinstance(size, int | float)}
    return knobs.model_copy(update={"rule": rule, "decoder_activation": decoder_activation, **known})
