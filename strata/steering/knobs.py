"""The section steer_eval of params.yaml."""

from typing import Annotated

from pydantic import Field, field_validator

from strata.run.params import Chosen, EachOnce, Section, SomeLayers


class Generate(Section):
    """Which texts the model writes when it is steered."""

    prompts: int = Field(ge=0, le=100000)
    strengths: Annotated[list[float], EachOnce]
    tokens: int = Field(gt=0, le=10000)


class SteerEval(Section):
    """Which latents are steered with, how strongly, and on which texts. See params.yaml."""

    run: bool
    layers: SomeLayers | None  # null: the last of the top-level layers
    latents: Chosen
    strengths: Annotated[list[float], EachOnce] = Field(min_length=1)
    prompts: int = Field(gt=0, le=1000000)
    tokens: int = Field(gt=0, le=100000)
    texts: list[str]
    scored: int = Field(gt=0, le=100000)
    contexts: int = Field(ge=0, le=10000)
    promoted: int = Field(gt=0, le=10000)
    kl: float = Field(gt=0)
    bootstraps: int = Field(gt=0, le=1000000)
    generate: Generate
    batch_size: int = Field(gt=0, le=65536)

    @field_validator("texts")
    @classmethod
    def _some_text(cls, texts: list[str]) -> list[str]:
        if any(not text.strip() for text in texts):
            raise ValueError("one of texts is empty; each is a prompt of at least one word")
        return texts
