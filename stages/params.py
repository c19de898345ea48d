"""A section of params.yaml -> a frozen, typed model; an unknown, missing or mistyped key is an error.

Each model lives beside the function that uses it. params.yaml is the only home of the values, so models have no
defaults: what is not written there is a mistake.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stages.door import BadInput

SECTIONS = (
    *("seed", "layers", "by_layer", "machine"),
    *("fetch", "extract", "tune", "train", "interpret", "cluster", "merge", "invert", "steer_eval", "evaluate"),
    *("targets", "report"),
)


class Section(BaseModel):
    """The base of every section: strict types, no unknown keys, no changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Machine(Section):
    """``device``: auto, cpu, cuda, cuda:1 …; ``threads``: pinned, because floating-point sums depend on it.

    ``save_every``: seconds between the states that an interrupted training goes on from.
    """

    device: str
    threads: int = Field(gt=0)
    save_every: float = Field(ge=0)


def _by_number(values: dict[int | str, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Layer -> its knobs. DVC writes a number that `-S` adds as text."""
    layers: dict[int, dict[str, Any]] = {}
    for name, knobs in values.items():
        if not str(name).isdecimal():
            raise ValueError(f"{name!r} is no number of a layer; write e.g. by_layer: {{9: {{k: 48}}}}")
        if int(name) in layers:
            raise ValueError(f"layer {name} is there twice, as a number and as text; join the two")
        layers[int(name)] = knobs
    return layers


def _each_once(values: list[Any]) -> list[Any]:
    """Refuse a list in which something is there twice."""
    if double := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ValueError(f"{values} has {double[0]!r} twice; write it once")
    return values


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and scikit-learn take
Layer = Annotated[int, Field(ge=0, lt=1000)]
EachOnce = AfterValidator(_each_once)
Layers = Annotated[list[Layer], Field(min_length=1), EachOnce]
ByLayer = Annotated[dict[int | str, dict[str, Any]], AfterValidator(_by_number)]
Hook = Literal["resid_post", "resid_pre", "mlp_out", "attn_out"]
DType = Literal["bfloat16", "float16", "float32"]  # of a forward pass
Blob = Literal["float32", "float64"]  # numbers of a vector that is a BLOB

T = TypeVar("T")


def load(key: str, kind: type[T] | Any, path: Path = Path("params.yaml")) -> T:
    """Read and check the section ``key`` of params.yaml as ``kind``."""
    return check(read(path).get(key), kind, f"{path}: {key}")


def read(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """Read params.yaml whole, and check that its sections are the known ones."""
    values = read_yaml(path, "run from the root of the project")
    if unknown := [str(name) for name in values if name not in SECTIONS]:
        raise BadInput(f"{path} has an unknown section {unknown[0]!r}; the known ones are {', '.join(SECTIONS)}")
    if missing := [name for name in SECTIONS if name not in values]:
        raise BadInput(f"{path} lacks the section {missing[0]!r}")
    return values


def read_yaml(path: Path, remedy: str = "run the stage that writes it (`dvc repro`)") -> dict[str, Any]:
    """Read a mapping; ``remedy``: what helps when the file is missing."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; {remedy}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path} must be a mapping of names to values")
    return values


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain ``values`` as YAML, in their order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def check(value: Any, kind: type[T] | Any, where: str) -> T:
    """Turn plain ``value`` into ``kind``; the first thing wrong with it becomes one sentence."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *map(str, first["loc"])])
        raise BadInput(_sentence(place, first)) from None


def _sentence(place: str, error: Any) -> str:
    got = error["input"]
    match error["type"]:
        case "extra_forbidden":
            return f"{place} is not a known key"
        case "missing":
            return f"{place} is missing"
        case "float_type" | "int_type" | "float_parsing" if isinstance(got, str):
            return f"{place} is the text {got!r}, not a number; YAML reads 1e-4 as text, so write 1.0e-4"
        case "value_error":
            return f"{place}: {error['ctx']['error']!s}"
        case _:
            message = error["msg"][0].lower() + error["msg"][1:]
            return f"{place} is {got!r}, but {message.replace('input', 'it')}"
