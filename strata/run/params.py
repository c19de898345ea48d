"""A section of params.yaml -> a frozen, typed model; an unknown, missing or mistyped key is an error.

Each model stands beside the function that uses it. Models have no defaults, because params.yaml is the only home of the
values: a key that is missing there is a mistake.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from strata.run.door import BadInput, near

PLAIN_INT = re.compile(r"[-+]?(0|[1-9]\d*|0x[0-9a-fA-F]+)")
LONGEST = 80  # characters of a value that a sentence quotes
LISTED = 6  # a sentence names all known keys of a section if it has at most so many


class Section(BaseModel):
    """The base of every section: strict types, finite numbers, no unknown keys, no changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict) or cls.model_config.get("extra") != "forbid":
            return values

        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in values:
            if key not in known:
                all_known = f"; the known ones are {', '.join(known)}" if len(known) <= LISTED else ""
                meant = all_known or near(str(key), known)
                raise PydanticCustomError("unknown_key", "unknown", {"key": str(key), "meant": meant})
        return values


class Machine(Section):
    """Where stages compute.

    ``device``: auto, cpu, cuda, cuda:1 … ``threads``: their number is pinned, because floating-point sums depend on it.
    ``save_every``: seconds between two saved states of a training, from which it goes on after an interruption.
    """

    device: str
    threads: int = Field(gt=0, le=1024)
    save_every: float = Field(ge=0)

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(f"{device!r} is none of auto, cpu, cuda and cuda:1{near(device, ['auto', 'cpu', 'cuda'])}")
        return device


def _by_number(values: dict[int | str, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Turn the layers of by_layer into numbers: a layer that `-S` adds is written by DVC as text."""
    layers: dict[int, dict[str, Any]] = {}
    for name, knobs in values.items():
        if not str(name).isdecimal():
            raise ValueError(f"{name!r} is no number of a layer; write e.g. by_layer: {{9: {{k: 48}}}}")
        if int(name) in layers:
            raise ValueError(f"layer {name} is there twice, as a number and as text; join the two")
        layers[int(name)] = knobs
    return layers


def _each_once(values: list[Any]) -> list[Any]:
    """Refuse a list with a repeated value."""
    if repeated := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ValueError(f"{shown(repeated[0])} is there twice; write it once")
    return values


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the seeds that NumPy and scikit-learn take
Layer = Annotated[int, Field(ge=0, lt=1000)]
EachOnce = AfterValidator(_each_once)
Layers = Annotated[list[Layer], Field(min_length=1), EachOnce]
SomeLayers = Annotated[list[Layer], EachOnce]
# How many of the latents that cluster selected, or which ones by number.
Chosen = Annotated[int, Field(gt=0)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), EachOnce]
ByLayer = Annotated[dict[int | str, dict[str, Any]], AfterValidator(_by_number)]
Hook = Literal["resid_post", "resid_pre", "mlp_out", "attn_out"]
DType = Literal["auto", "bfloat16", "float16", "float32"]  # of a forward pass
Blob = Literal["float32", "float64"]  # numbers of a vector that is a BLOB

T = TypeVar("T")


def load(key: str, kind: type[T] | Any, path: Path = Path("params.yaml")) -> T:
    """Read and check the section ``key`` of params.yaml as ``kind``."""
    values = read(path)
    if key not in values:
        raise BadInput(f"{path} lacks the section {key!r}")
    return check(values[key], kind, f"{path}: {key}")


def read(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """Read params.yaml whole; what its sections are, select checks (`stages/select/whole.py`)."""
    return read_yaml(path, "run from the root of the project")


class _Loader(yaml.SafeLoader):
    """YAML as `safe_load` reads it, but for three things.

    A key that is there twice is refused, because its first value would be lost. So is a number that YAML 1.1 reads in
    another way than people: 010 as 8, and 1:30 as 90. And 5e-05 is a number, as in YAML 1.2, because DVC writes one so
    when `dvc exp run -S` changes it.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is there twice", node.value[place][0].start_mark
                )
        return super().construct_mapping(node, deep)

    def construct_plain_int(self, node: Any) -> int:
        """Return a whole number. Refuses one that has leading zeros, underscores or colons."""
        number = self.construct_yaml_int(node)
        if not PLAIN_INT.fullmatch(node.value):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{node.value} would be read as {number}; write {number}, or put it in quotes",
                node.start_mark,
            )
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_plain_int)


class _Dumper(yaml.SafeDumper):
    """Quotes the words that :class:`_Loader` would read as numbers."""


# To its end: a hash such as 77e6a09e… is a word.
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
    )


def read_yaml(path: Path, remedy: str = "run the stage that writes it (`dvc repro`)") -> dict[str, Any]:
    """Read a YAML file that holds a mapping. ``remedy``: what helps when the file is missing, for the message."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; {remedy}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from None


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """The mapping that ``text``, which is that of ``path``, says. Raises BadInput."""
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that does not exist
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadInput(f"{path} is not valid YAML: it is nested too deeply") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path} must be a mapping of names to values")
    return values


def lines_of(text: str) -> dict[tuple[str, ...], int]:
    """Of the YAML ``text``, the line on which each key and each item of a list stands.

    >>> lines_of("layers: [3]\ntrain:\n  k: 8")[("train", "k")]
    3
    """
    found: dict[tuple[str, ...], int] = {}
    todo: list[tuple[tuple[str, ...], yaml.Node | None]] = [((), yaml.compose(text, _Loader))]
    while todo:
        path, node = todo.pop()
        if isinstance(node, yaml.MappingNode):
            inner = [(str(name.value), name, value) for name, value in node.value]
        else:
            items = node.value if isinstance(node, yaml.SequenceNode) else []
            inner = [(str(number), value, value) for number, value in enumerate(items)]
        for name, begin, value in inner:
            found[*path, name] = begin.start_mark.line + 1
            todo.append(((*path, name), value))
    return found


def dump_yaml(values: dict[str, Any]) -> str:
    """Write plain ``values`` as YAML, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def check(value: Any, kind: type[T] | Any, where: str) -> T:
    """Turn a plain ``value`` into ``kind``. Raises BadInput, with one sentence on the first mistake in ``value``.

    ``where``: what the sentence calls the value, such as "params.yaml: train".
    """
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise BadInput(_sentence(value, error.errors(), where)) from None


def _sentence(value: Any, errors: Sequence[Any], where: str) -> str:
    """Write what is wrong with ``value``, by the first of pydantic's ``errors`` and the others at the same place."""
    paths = [_path(value, error) for error in errors]

    # Where several types are allowed, each of them has its error. The error that is nested deepest knows most.
    nested = [path for path in paths if path[: len(paths[0])] == paths[0]]
    deepest = max(nested, key=len)
    errors_there = [error for error, path in zip(errors, paths, strict=True) if path == deepest]
    error = errors_there[0]
    place = ".".join([where, *map(str, deepest)])  # "params.yaml: train.k"
    wrong_value = error["input"]

    match error["type"]:
        case "unknown_key":
            key_path = place.rpartition(" ")[2]
            meant = error["ctx"]["meant"].replace("did you mean ", f"did you mean {key_path}.")
            return f"{place}.{error['ctx']['key']} is not a known key{meant}"

        case "missing":
            return f"{place} is missing"

        case "value_error":
            return f"{place}: {error['ctx']['error']!s}"

        case "float_type" | "int_type" if len(errors_there) == 1 and isinstance(wrong_value, str):
            hint = "; write it without quotes" if _is_number(wrong_value) else ""
            return f"{place} is the text {shown(wrong_value)}, not a number{hint}"

        case _:
            # pydantic's own words of all allowed types: "Input should be 'a'", "Input should be null"
            wishes = dict.fromkeys(error["msg"].replace("Input should", "it should") for error in errors_there)
            wish = " or ".join(wishes).replace(" or it should be ", " or ")
            choices = [
                choice
                for error in errors_there
                for choice in re.findall("'(.*?)'", error.get("ctx", {}).get("expected", ""))
            ]
            suggestion = near(str(wrong_value), choices)
            return f"{place} is {shown(wrong_value)}, but {wish[0].lower()}{wish[1:]}{suggestion}"


def _path(value: Any, error: Any) -> list[Any]:
    """List the keys and places in ``value`` that lead to an error, without pydantic's names of types."""
    path: list[Any] = []
    for step in error["loc"]:
        exists = step in value if isinstance(value, dict) else isinstance(value, list) and isinstance(step, int)
        if exists:
            path.append(step)
            value = value[step]
    return [*path, error["loc"][-1]] if error["type"] == "missing" else path


def _is_number(text: str) -> bool:
    """Say whether Python reads ``text`` as a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def shown(value: Any) -> str:
    """Quote a value for a sentence, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
