"""The section tune of params.yaml, and which points of its space there are."""

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from stages.door import BadInput
from stages.params import Section
from stages.sae.knobs import Train

Sampler = Literal["gp", "forest", "dummy"]
Value = float | int | str | bool | None
FIXED = {
    "epochs": "tune.epochs says how long a trial is",
    "from_tune": "it is no knob of a training",
    "groups": "it is a list",
    "micro_batches": "it is chosen for the number of processes",
    "log_every": "it changes no result",
    "keep_every": "it changes no result",
    "ce_tokens": "it changes no result",
    "validation_rows": "a trial is judged on all validation rows",
}


class Range(Section):
    """From ``min`` to ``max``, both included; ``log``: every factor is as likely as every other."""

    min: float | int
    max: float | int
    log: bool = False

    @model_validator(mode="after")
    def _can_vary(self) -> "Range":
        if self.min >= self.max:
            raise ValueError(f"min {self.min:g} is not below max {self.max:g}")
        if self.log and self.min <= 0:
            raise ValueError(f"min is {self.min:g}, and a log range needs one above 0")
        return self


class Tune(Section):
    """What is searched, how, and on what. See params.yaml."""

    run: bool
    layer: int = Field(ge=0)
    sampler: Sampler
    calls: int = Field(gt=0)
    starts: int = Field(gt=0)
    rows: int | None = Field(gt=0)
    epochs: int = Field(gt=0)
    space: dict[str, Range | Annotated[list[Value], Field(min_length=2)]]

    @model_validator(mode="after")
    def _fits(self) -> "Tune":
        if not self.space:
            raise ValueError("space is empty; name at least one knob of train, e.g. lr: {min: 0.001, max: 0.01}")
        if self.sampler != "dummy" and self.starts >= self.calls:
            raise ValueError(
                f"starts is {self.starts}, so that none of {self.calls} calls is left to learn from; lower it"
            )
        for name, spread in self.space.items():
            _check(name, spread)
        return self

    def values(self, name: str) -> type[int] | type[float] | None:
        """What a range of the knob consists of; None for a list of choices."""
        return _number(name) if isinstance(self.space[name], Range) else None


def _check(name: str, spread: "Range | list[Value]") -> None:
    if name not in Train.model_fields:
        raise ValueError(f"space names {name!r}, which is no knob of train; e.g. lr, k, auxk, latents, rule are")
    if name in FIXED:
        raise ValueError(f"space names {name}, which cannot be tuned: {FIXED[name]}")
    if isinstance(spread, Range) and _number(name) is None:
        raise ValueError(f"space.{name} is a range, but {name} is no number; give a list of choices")
    if isinstance(spread, list) and len({repr(value) for value in spread}) < len(spread):
        raise ValueError(f"space.{name} names a choice twice")
    for value in (spread.min, spread.max) if isinstance(spread, Range) else spread:
        try:
            knob(name).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].replace("Input", "it")
            raise ValueError(f"space.{name} has {value!r}, but {message}") from None


def knob(name: str) -> TypeAdapter[Any]:
    """What one knob of train may be by itself."""
    field = Train.model_fields[name]
    kind: Any = Annotated[field.annotation, field]  # pyright: ignore[reportInvalidTypeForm]
    return TypeAdapter(kind, config=ConfigDict(strict=True))


def _number(name: str) -> type[int] | type[float] | None:
    annotation = Train.model_fields[name].annotation
    kinds = (annotation, *get_args(annotation))
    return int if int in kinds else float if float in kinds else None


def check_taken(names: list[str], tune: Tune) -> None:
    """Refuse a ``train.from_tune`` that the search could not fill."""
    if strange := [name for name in names if name not in tune.space]:
        raise BadInput(
            f"params.yaml: train.from_tune names {strange[0]!r}, which tune.space does not have; "
            f"it has {', '.join(tune.space)}"
        )
