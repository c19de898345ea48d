"""The section tune of params.yaml, and the checks of its search space."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from strata.run.door import BadInput, near
from strata.run.params import Section, check
from strata.training.knobs import Train

Sampler = Literal["gp", "forest", "dummy"]
FIXED = {
    "epochs": "tune.epochs says how long a trial is",
    "from_tune": "it is no knob of a training",
    "from_": "it is no knob of a training",
    "encoder": "it is a file",
    "groups": "it is a list",
    "micro_batches": "it is chosen for the number of processes",
    "log_every": "it changes no result",
    "keep_every": "it changes no result",
    "ce_tokens": "it changes no result",
    "validation_rows": "a trial is judged on all validation rows",
}


class Range(Section):
    """Numbers from ``min`` to ``max``, both included. ``log``: equal factors, not equal steps, are equally likely."""

    min: float
    max: float
    log: bool = False


class Tune(Section):
    """What is searched, how, and on which rows. See params.yaml. ``space``: knob -> a range, or a list of choices."""

    run: bool
    sampler: Sampler
    calls: int = Field(gt=0, le=10000)
    starts: int = Field(gt=0, le=10000)
    rows: int | None = Field(gt=0)
    epochs: int = Field(gt=0, le=100000)
    space: dict[str, Any]

    @field_validator("space")
    @classmethod
    def _known(cls, space: dict[str, Any]) -> dict[str, Range | list[Any]]:
        if not space:
            raise ValueError("it is empty; name at least one knob of train, e.g. lr: {min: 0.001, max: 0.01}")
        try:
            return {name: _spread(name, entry) for name, entry in space.items()}
        except BadInput as refusal:
            raise ValueError(str(refusal)) from None

    @model_validator(mode="after")
    def _fits(self) -> "Tune":
        if self.sampler != "dummy" and self.starts >= self.calls:
            raise ValueError(
                f"starts is {self.starts}, so that none of {self.calls} calls is left to learn from; lower it"
            )
        return self


def _spread(name: str, entry: Any) -> Range | list[Any]:
    """Check the ``entry`` of a knob in tune.space: a range, or a list of choices, each of which the knob may have.

    Raises BadInput if the knob cannot be tuned, or the entry is not such.
    """
    if name not in Train.model_fields:
        others = near(name, Train.model_fields) or "; lr, k, latents, auxk, rule and others are"
        raise BadInput(f"{name!r} is no knob of train{others}")
    if name in FIXED:
        raise BadInput(f"{name} cannot be tuned: {FIXED[name]}")

    if isinstance(entry, list):
        if len({repr(value) for value in entry}) < max(len(entry), 2):
            raise BadInput(f"{name} has the choices {entry}; give at least two, each once")
        for value in entry:
            _allowed(name, value)
        return entry

    if not isinstance(entry, dict):
        raise BadInput(f"{name} is {entry!r}; give {{min: …, max: …}}, with log: true if need be, or a list of choices")
    spread = check(entry, Range, name)
    if _number(name) is None:
        raise BadInput(f"{name} has a range, but is no number; give a list of choices")
    if spread.min >= spread.max:
        raise BadInput(f"{name}.min is {spread.min:g}, which is not below its max {spread.max:g}")
    if spread.log and spread.min <= 0:
        raise BadInput(f"{name}.min is {spread.min:g}, and a log range begins above 0")
    for value in ends(name, spread):
        _allowed(name, value)
    return spread


def ends(name: str, spread: Range) -> tuple[float, float] | tuple[int, int]:
    """Return both bounds of a range: as integers where the knob is an integer and they are whole, else as floats."""
    if _number(name) is int and spread.min.is_integer() and spread.max.is_integer():
        return int(spread.min), int(spread.max)
    return spread.min, spread.max


def _allowed(name: str, value: Any) -> None:
    """Raise BadInput if a knob of train may not have this value by itself."""
    try:
        knob(name).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].replace("Input", "it")
        raise BadInput(f"{name} may be {value!r}, but {message}") from None


def knob(name: str) -> TypeAdapter[Any]:
    """Make the check of what one knob of train may be by itself."""
    field = Train.model_fields[name]
    kind: Any = Annotated[field.annotation, field]  # pyright: ignore[reportInvalidTypeForm]
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))


def _number(name: str) -> type[int] | type[float] | None:
    """Say which kind of number a knob of train is; None: it is not a number."""
    annotation = Train.model_fields[name].annotation
    kinds = (annotation, *get_args(annotation))
    return int if int in kinds else float if float in kinds else None


def extremes(tune: Tune) -> Iterator[tuple[str, Any]]:
    """Yield the ends of each range and every choice, with the knob's name."""
    for name, spread in tune.space.items():
        for value in spread if isinstance(spread, list) else ends(name, spread):
            yield name, value


def check_taken(names: list[str], tune: Tune) -> None:
    """Raise BadInput if ``names``, train.from_tune, holds a knob that is not searched."""
    if strange := [name for name in names if name not in tune.space]:
        raise BadInput(
            f"params.yaml: train.from_tune names {strange[0]!r}, which tune.space does not have; "
            f"it has {', '.join(tune.space)}"
        )
