"""The knobs with which one layer's SAE is trained. Stage evaluate trains SAEs like it, and asks here, too."""

from pathlib import Path
from typing import Any

from strata import auto
from strata.run import params
from strata.run.files import read_json
from strata.training.knobs import Train, knobs_of
from strata.tuning.read import taken


def of_layer(layer: int, size: auto.Size, tuned: Path, override: Path, tell: bool = False) -> Train:
    """Return the section train, over it what it takes from tune, over that what by_layer says of this ``layer``.

    ``size``: of the training rows. ``tuned``: the path of tune's `best.yaml`. ``override``: that of select's file about
    the layer. ``tell``: whether to say on stderr what the values of `auto` are,
    if there is a training.
    """
    section: dict[str, Any] = params.load("train", dict)
    by_layer = read_json(override)
    from_tune = taken(tuned, knobs_of(section, {}, {}, layer, size).from_tune)
    knobs = knobs_of(section, from_tune, by_layer, layer, size)
    if tell and knobs.from_ is None:
        auto.tell(f"train {layer}", {**section, **from_tune, **by_layer}, knobs.model_dump(), size)
    return knobs
