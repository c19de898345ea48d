"""The section interpret of params.yaml."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from strata.run.params import EachOnce, Section

PARQUET, JSONL = 3.4, 5.6  # bytes that a shown token takes in examples.parquet, and in examples.jsonl.gz
TABLE = 6500  # bytes that the rules, documents, enrichment and statistics of a latent take

Quadrant = Literal["flowing", "careful", "exploring", "resampling"]


class Range(Section):
    """Bounds on a share from 0 to 1: ``min`` ≤ value ≤ ``max``. Null means no bound."""

    min: float | None = Field(ge=0, le=1)
    max: float | None = Field(ge=0, le=1)

    @property
    def bounds(self) -> bool:
        """Whether there is a bound at all."""
        return self.min is not None or self.max is not None

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, so nothing would be kept")
        return self


class Filters(Section):
    """Which latents to keep.

    ``entropy``: the entropy of a latent over documents, as a share of ln(documents). So it lies in 0 … 1, however many
    documents there are. ``firing``: the share of the documents in which the latent fires at all. ``importance``:
    density × mean when active × norm of the decoder row, as a share of the largest in the layer. ``again``: the
    probability that the latent comes again with another seed, by the cosine of decoder rows; where stability did not
    run, it drops nothing. ``quadrants``: which quadrants to keep; null means all.
    """

    entropy: Range
    firing: Range
    importance: Range
    again: Range
    quadrants: Annotated[list[Quadrant], Field(min_length=1), EachOnce] | None


class Examples(Section):
    """How many examples of each kind a latent gets; ``decile``: how many of each decile.

    ``one_a_document``: take at most one example of a kind from a document; the deciles do not follow this.
    ``pool``: near misses are taken from a random sample of at most so many windows, which is held in memory.
    """

    top: int = Field(ge=0, le=10000)
    decile: int = Field(ge=0, le=10000)
    random: int = Field(ge=0, le=10000)
    zero: int = Field(ge=0, le=10000)
    near: int = Field(ge=0, le=10000)
    one_a_document: bool
    pool: int = Field(gt=0, le=10000000)


class Enrichment(Section):
    """How many of the strongest rows, and of the strongest documents, of a latent are tested for labels."""

    rows: int = Field(gt=0, le=1000000)
    documents: int = Field(gt=0, le=1000000)


class Interpret(Section):
    """The section interpret: what to find out about latents, and how much of it to keep. See params.yaml.

    ``items``: how many windows each explanation of a latent is scored on, also by explain; half of them are active.
    """

    run: bool
    texts: dict[str, Any] | None
    window: int = Field(gt=0, le=10000)
    tokens: int = Field(ge=0, le=1000)
    logits: int = Field(ge=0, le=10000)
    neighbours: int = Field(ge=0, le=10000)
    items: int = Field(ge=2, le=10000)
    examples: Examples
    exports: Annotated[list[Literal["jsonl", "npy"]], EachOnce]
    filters: Filters
    enrichment: Enrichment

    def table_bytes(self, latents: int) -> float:
        """Estimate the size of the tables on disk, in bytes, from the number of tokens in all examples."""
        kinds = self.examples
        windows = kinds.top + 10 * kinds.decile + kinds.random + kinds.zero + kinds.near
        examples_bytes = windows * self.window * (PARQUET + JSONL * ("jsonl" in self.exports))
        return latents * (examples_bytes + TABLE)
