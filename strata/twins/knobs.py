"""The section controls of params.yaml, and which twins a training can have."""

from typing import Annotated

from pydantic import Field

from strata.run.params import EachOnce, Section, SomeLayers
from strata.training.knobs import Held, Train
from strata.verdict.targets import Twin

HELD: dict[Twin, Held] = {  # twin -> what its training holds at random
    "frozen_decoder": "decoder",
    "frozen_encoder": "encoder",
    "near_random_decoder": "near_decoder",
}


class Controls(Section):
    """Which twins of the SAEs are trained, and of which layers. See params.yaml."""

    run: bool
    layers: SomeLayers | None
    twins: Annotated[list[Twin], EachOnce] = Field(min_length=1)


def barred(twin: Twin, train: Train) -> str | None:
    """Return why a training with the knobs ``train`` has no such ``twin``; None if it can have one."""
    if train.from_ is not None:
        return "the SAE was given (train.from), so that no training is like its own"
    if twin not in HELD:
        return None
    if train.encoder is not None:
        return "train.encoder says how the encoder begins, so that nothing of it is random"
    if train.resample_every:
        return "train.resample_every would replace rows that have to stay random"
    if twin == "frozen_encoder" and train.rule == "gated":
        return "rule gated scales the encoder"
    return None
