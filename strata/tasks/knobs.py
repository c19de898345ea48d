"""The section evaluate.tasks of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from strata.run.params import EachOnce, Section, SomeLayers

Keep = Literal["first", "last"]
Pooling = Literal["last", "mean"]
Regime = Literal["normal", "scarcity", "imbalance", "ood"]
Penalty = Literal["l2", "l1"]


class TaskSource(Section):
    """Where tasks come from. Users write each source by hand, so keys may be left out."""

    source: str = Field(min_length=1)
    tasks: Literal["short", "all"] | Annotated[list[str], Field(min_length=1), EachOnce] = "short"
    keep: Keep | None = None  # of a prompt that is too long; None: first for package:bbc-news, else last
    prompt: str = Field(default="prompt", min_length=1)  # columns of a table
    target: str = Field(default="target", min_length=1)
    ood: str | None = Field(default=None, min_length=1)  # a table of prompts of another kind, for the regime ood

    @property
    def packaged(self) -> str | None:
        """The name after `package:`; None for a file."""
        prefix, colon, name = self.source.partition(":")
        return name if colon and prefix == "package" else None

    @model_validator(mode="after")
    def _only_of_a_table(self) -> "TaskSource":
        if self.packaged and (self.prompt, self.target, self.ood) != ("prompt", "target", None):
            raise ValueError(f"prompt, target and ood are for a table, and {self.source} is none")
        return self


class Tasks(Section):
    """Which tasks are judged, on how many prompts, and how. See params.yaml."""

    sources: Annotated[list[TaskSource], EachOnce]
    layers: SomeLayers | None
    prompts: int | None = Field(ge=104)
    distinct: bool
    tokens: int = Field(gt=1, le=1048576)
    pooling: Annotated[list[Pooling], EachOnce] = Field(min_length=1)
    k: Annotated[list[Annotated[int, Field(gt=0)]], EachOnce] = Field(min_length=1)
    regimes: Annotated[list[Regime], EachOnce] = Field(min_length=1)
    penalty: Penalty
    seeds: int = Field(gt=0, le=1000)
