"""The section invert of params.yaml."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from strata.run.params import Chosen, DType, Section, SomeLayers

Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class Starts(Section):
    """What greedy search starts from. ``pool``: how many random prompts the best ones are taken from."""

    corpus: Count
    random: Count
    pool: int = Field(gt=0, le=1000000)


class Greedy(Section):
    """Greedy coordinate gradient.

    ``fluency``: weights of the cross-entropy. The starts use them in turn, those of the corpus first.
    """

    starts: Starts
    steps: Count
    candidates: int = Field(gt=0, le=1000000)
    top: int = Field(gt=0, le=1000000)
    fluency: list[Weight] = Field(min_length=1)


class Soft(Section):
    """Gradient search over embeddings. The last four are weights of penalties."""

    starts: Count
    steps: int = Field(gt=0, le=1000000)
    lr: float = Field(gt=0)
    distance: Weight
    diversity: Weight
    repetition: Weight
    fluency: Weight


class Invert(Section):
    """Which latents are inverted, and how. See params.yaml."""

    run: bool
    layers: SomeLayers | None  # null: the last of the top-level layers
    latents: Chosen
    tokens: int = Field(gt=0, le=100000)
    keep_prefix: str
    dtype: DType
    greedy: Greedy
    soft: Soft
    templates: Count

    @model_validator(mode="after")
    def _begun(self) -> Self:
        starts, most = self.greedy.starts, max(self.greedy.starts.random, self.soft.starts)
        if not starts.corpus + most:
            raise ValueError(
                "no search has a start; set greedy.starts.corpus, greedy.starts.random or soft.starts above 0"
            )
        if most > starts.pool:
            raise ValueError(f"greedy.starts.pool is {starts.pool}, but {most} starts are to be taken from it")
        return self
