"""The section interpret of params.yaml."""

from typing import Any, Literal

from pydantic import Field

from stages.interpret.examples import Examples
from stages.interpret.explain import Explain
from stages.interpret.filters import Filters
from stages.params import Section


class Enrichment(Section):
    """How many of a latent's strongest rows, and documents, are tested for labels."""

    rows: int = Field(gt=0)
    documents: int = Field(gt=0)


class Interpret(Section):
    """What is looked for, and how much of it is kept. See params.yaml."""

    run: bool
    texts: dict[str, Any] | None
    window: int = Field(gt=0)
    tokens: int = Field(ge=0)
    logits: int = Field(ge=0)
    neighbours: int = Field(ge=0)
    examples: Examples
    exports: list[Literal["jsonl", "npy"]]
    filters: Filters
    enrichment: Enrichment
    explain: Explain
