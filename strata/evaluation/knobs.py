"""The section evaluate of params.yaml."""

from typing import Annotated

from pydantic import Field

from strata.run.params import EachOnce, Section
from strata.tasks.knobs import Tasks


class Probing(Section):
    """Which labels of which documents are probed for, and with how many latents."""

    k: Annotated[list[Annotated[int, Field(gt=0)]], EachOnce] = Field(min_length=1)
    labels: int = Field(ge=0, le=10000)
    least: int = Field(ge=2)
    documents: int = Field(gt=0, le=10000000)
    tokens: int | None = Field(gt=0)
    held_out: float = Field(gt=0, lt=1)


class TokenRules(Section):
    """Of how many latents token rules are learned, and on how many rows."""

    latents: int = Field(ge=0, le=1000000)
    rows: int = Field(gt=0, le=2**20)


class Evaluate(Section):
    """What is measured of an SAE. See params.yaml."""

    run: bool
    seeds: int = Field(gt=0, le=1000)
    probing: Probing
    tasks: Tasks
    rules: TokenRules
    meta: int = Field(ge=0, le=1000)
    absorption: int = Field(ge=0, le=1000)
    letters: int = Field(ge=0, le=1000000)
