"""The knobs with which one layer's SAE is trained. Stage evaluate trains SAEs like it, and asks here, too."""

from pathlib import Path
from typing import Any, NamedTuple

from strata import auto
from strata.rows.size import Size
from strata.run import params
from strata.run.files import read_json
from strata.training.knobs import Train, knobs_of
from strata.tuning.read import taken


class Settings(NamedTuple):
    """The ``knobs`` of one layer, and what was ``written`` for them, `auto` included."""

    knobs: Train
    written: dict[str, Any]

    def tell(self, layer: int, size: Size) -> None:
        """Say on stderr what the values of `auto` are."""
        auto.tell(f"train {layer}", self.written, self.knobs.model_dump(), size)


def of_layer(layer: int, size: Size, tuned: Path, override: Path) -> Settings:
    """Return the section train, over it what it takes from tune, over that what by_layer says of this ``layer``.

    ``size``: of the training rows. ``tuned``: the path of tune's `best.yaml`. ``override``: that of select's file about
    the layer.
    """
    section: dict[str, Any] = params.load("train", dict)
    by_layer = read_json(override)
    from_tune = taken(tuned, knobs_of(section, {}, {}, layer, size).from_tune)
    knobs = knobs_of(section, from_tune, by_layer, layer, size)
    return Settings(knobs, {**section, **from_tune, **by_layer})
