"""The section invert of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.params import Section

Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class Starts(Section):
    """What greedy search starts from. ``pool``: the random prompts that the best ones are taken from."""

    corpus: Count
    random: Count
    pool: int = Field(gt=0)


class Greedy(Section):
    """Greedy coordinate gradient. ``fluency``: weights of the cross-entropy; the starts take turns, corpus first."""

    starts: Starts
    steps: Count
    candidates: int = Field(gt=0)
    top: int = Field(gt=0)
    fluency: list[Weight] = Field(min_length=1)


class Soft(Section):
    """Gradient search over embeddings. The last four are weights of penalties."""

    starts: Count
    steps: int = Field(gt=0)
    lr: float = Field(gt=0)
    distance: Weight
    diversity: Weight
    repetition: Weight
    fluency: Weight


class Invert(Section):
    """Which latents are inverted, and how. See params.yaml."""

    run: bool
    layers: list[int]
    latents: Annotated[int, Field(gt=0)] | list[int]
    tokens: int = Field(gt=0)
    keep_prefix: str
    dtype: Literal["bfloat16", "float16", "float32"]
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
