"""The section steer_eval of params.yaml."""

from pydantic import Field, field_validator

from stages.params import Section


class Generate(Section):
    """What the model writes when it is steered."""

    prompts: int = Field(ge=0)
    strengths: list[float]
    tokens: int = Field(gt=0)


class SteerEval(Section):
    """Which latents are steered with, how hard, on which texts. See params.yaml."""

    run: bool
    layers: list[int]
    latents: int | list[int]
    strengths: list[float] = Field(min_length=1)
    prompts: int = Field(gt=0)
    tokens: int = Field(gt=0)
    texts: list[str]
    scored: int = Field(gt=0)
    contexts: int = Field(ge=0)
    promoted: int = Field(gt=0)
    kl: float = Field(gt=0)
    bootstraps: int = Field(gt=0)
    generate: Generate
    batch_size: int = Field(gt=0)

    @field_validator("texts")
    @classmethod
    def _some_text(cls, texts: list[str]) -> list[str]:
        if any(not text.strip() for text in texts):
            raise ValueError("one of texts is empty; each is a prompt of at least one word")
        return texts
