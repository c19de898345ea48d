"""The section explain of params.yaml. It has a file of its own, so that a change of it does not run interpret again."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from strata.run.params import EachOnce, Section, SomeLayers

MoreScore = Literal["fuzzing", "intruder"]


class Explain(Section):
    """The section explain: who explains which latents in words, and how much is shown. See params.yaml.

    ``model``: null, lm, a folder or name, or endpoint:NAME. ``range``: explain only latents j with first ≤ j < second.
    ``drawn``: how many more latents, drawn at random. ``window``: tokens of a scored window that are judged.
    ``timeout``: in seconds. ``budget``: how many tokens an endpoint may use in one run.
    """

    model: str | None
    layers: SomeLayers | None  # null: the last of the top-level layers
    latents: int = Field(ge=0, le=1000000)
    drawn: int = Field(ge=0, le=1000000)
    range: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None
    shown: int = Field(gt=0, le=1000)
    silent: int = Field(ge=0, le=1000)
    window: int | None = Field(ge=4)
    scores: Annotated[list[MoreScore], EachOnce]
    embedder: str | None
    batch_size: int = Field(gt=0, le=4096)
    timeout: float = Field(gt=0, le=86400)
    retries: int = Field(ge=0, le=100)
    parallel: int = Field(gt=0, le=1024)
    budget: int | None = Field(gt=0)

    @field_validator("model")
    @classmethod
    def _named(cls, model: str | None) -> str | None:
        if model is not None and not model.removeprefix("endpoint:").strip():
            raise ValueError(f"{model!r} names no model; write lm, a folder, a name, endpoint:NAME, or null for none")
        return model

    @field_validator("range")
    @classmethod
    def _rises(cls, range: list[int] | None) -> list[int] | None:
        if range is not None and range[0] >= range[1]:
            raise ValueError(f"{range} holds no latent; it is the first and the end, such as [0, 100]")
        return range
