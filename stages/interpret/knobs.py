"""The section interpret of params.yaml."""

from typing import Any, Literal

from pydantic import Field, model_validator

from stages.params import Section

Quadrant = Literal["flowing", "careful", "exploring", "resampling"]


class Range(Section):
    """``min`` ≤ value ≤ ``max``; null: no bound."""

    min: float | None
    max: float | None

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, so nothing would be kept")
        return self


class Filters(Section):
    """``entropy``: of a latent over documents, as a share of ln(documents), so that 0 … 1 whatever their number.

    ``firing``: share of the documents in which it fires at all. ``importance``: density × mean when active × norm of
    the decoder's row, as a share of the layer's largest. ``quadrants``: which ones to keep; null: all.
    """

    entropy: Range
    firing: Range
    importance: Range
    quadrants: list[Quadrant] | None


class Examples(Section):
    """How many of each kind a latent; ``decile``: of each decile. ``one_a_document``: of each kind but the deciles.

    ``pool``: from how many windows at the most near misses are taken, a random sample, held in memory.
    """

    top: int = Field(ge=0)
    decile: int = Field(ge=0)
    random: int = Field(ge=0)
    zero: int = Field(ge=0)
    near: int = Field(ge=0)
    one_a_document: bool
    pool: int = Field(gt=0)


class Explain(Section):
    """Who explains which latents in words, and how much is shown and scored. See params.yaml.

    ``model``: null, lm, a folder or name, or endpoint:NAME. ``range``: only latents from the first number to before the
    second. ``items``: windows scored a latent, by token rules too, half of them active. ``timeout`` in seconds.
    """

    model: str | None
    layers: list[int]
    latents: int = Field(ge=0)
    range: list[int] | None = Field(min_length=2, max_length=2)
    shown: int = Field(gt=0)
    silent: int = Field(ge=0)
    items: int = Field(ge=2)
    embedder: str | None
    batch_size: int = Field(gt=0)
    timeout: float = Field(gt=0)
    retries: int = Field(ge=0)
    parallel: int = Field(gt=0)


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
