"""Write a recipe as words of `dvc exp run -S`, in the grammar of DVC, which is Hydra's; and read such words back."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from strata.run.door import BadInput
from strata.run.params import dump_yaml, read_yaml

PLAIN = re.compile(r"[A-Za-z_][\w-]*([./:][A-Za-z_][\w-]*)*", re.ASCII)  # text that needs no quotes
RESERVED = {"null", "true", "false", "inf", "nan"}
NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)  # a key inside {…}, which cannot be quoted
SWEEP = re.compile(r"(choice|range)\(.*\)", re.DOTALL)  # several values: DVC makes an experiment for each


def is_sweep(value: Any) -> bool:
    """Say whether a value of a recipe stands for several: choice(32, 64), range(1, 5)."""
    return isinstance(value, str) and SWEEP.fullmatch(value.strip()) is not None


def words(old: Mapping[Any, Any], new: Mapping[Any, Any], above: str = "") -> list[str]:
    """Return the words that turn the values ``old`` into ``new``. A key whose value stays has none.

    `~key` deletes a key, `+key=value` adds one, and `key=value` changes one.

    >>> words({"train": {"k": 80, "lr": 0.1}, "seed": 0}, {"train": {"k": 8, "auxk": 0.0}, "seed": 0})
    ['~train.lr', 'train.k=8', '+train.auxk=0.0']
    """
    result: list[str] = []
    for name in [name for name in old if name not in new]:
        if old[name] is None:
            result.append(f"{above}{name}=0")  # DVC does not find a key whose value is null, so it gets another one
        result.append(f"~{above}{name}")

    for name, value in new.items():
        key = f"{above}{name}"
        if name not in old:
            result.append(f"+{key}={written(value)}")
        elif isinstance(value, Mapping) and isinstance(old[name], Mapping):
            result += words(old[name], value, f"{key}.")
        elif {type(value), type(old[name])} == {dict, list}:
            result += [f"~{key}", f"+{key}={written(value)}"]  # DVC cannot replace a mapping by a list, or the reverse
        elif alike(value) != alike(old[name]):
            result.append(f"{key}={written(value)}")
    return result


def alike(value: Any) -> str:
    """Return a text that is the same for equal values of equal types, and for no others: 1 is not True, and not 1.0.

    The keys 3 and "3" count as equal, because DVC makes text of keys.
    """
    if isinstance(value, Mapping):
        return repr(sorted((str(name), alike(inner)) for name, inner in value.items()))
    if isinstance(value, list):
        return repr([alike(inner) for inner in value])
    # The YAML reader has kinds of numbers and texts of its own, which remember how they were written: use plain ones.
    kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return repr(kind(value) if kind else value)


def written(value: Any) -> str:
    """Write ``value`` as it stands behind the = of a word. Raises BadInput for what the grammar cannot say."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_name(name)}:{written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(inner) for inner in value) + "]"
    text = str(value)
    if is_sweep(text):
        return text.strip()
    return text if PLAIN.fullmatch(text) and text.lower() not in RESERVED else _quoted(text)


def _name(name: Any) -> str:
    """Write a key inside {…}. Raises BadInput for one that would need quotes, which the grammar does not have there."""
    text = str(name)
    if not text.isdecimal() and not (NAME.fullmatch(text) and text.lower() not in RESERVED):
        raise BadInput(f"the key {name!r} cannot be handed to dvc exp run; use letters, digits and _")
    return text


def _quoted(text: str) -> str:
    """Put ``text`` into single quotes. A backslash means something only before a quote or ${, so only those double."""
    # ${…} would stand for the value of another key.
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    ending = re.search(r"\\*\Z", text)  # backslashes before the closing quote
    return f"'{text}{ending[0] if ending else ''}'"


def applied(values: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Return the ``values`` of params.yaml after `dvc exp run -S` with all ``changes``, by DVC's own code."""
    from dvc.exceptions import InvalidArgumentError  # DVC takes a while to import
    from dvc.utils.hydra import apply_overrides

    with TemporaryDirectory(prefix="strata-") as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(dump_yaml(dict(values)), encoding="utf-8")
        try:
            apply_overrides(path, list(changes))
        except InvalidArgumentError as error:
            raise BadInput(_reason(error)) from None
        return read_yaml(path)


def swept(changes: Sequence[str]) -> list[list[str]]:
    """Return the words of each experiment that DVC makes of ``changes``: one, or several if a word is a sweep."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import get_hydra_sweeps, to_hydra_overrides
    from hydra.errors import HydraException

    try:
        if not any(override.is_sweep_override() for override in to_hydra_overrides(list(changes))):
            return [list(changes)]
        return [sweep["params.yaml"] for sweep in get_hydra_sweeps({"params.yaml": list(changes)})]
    except (DvcException, HydraException) as error:
        raise BadInput(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Return Hydra's message on one line; for a word that it cannot parse, with the advice that helps most often."""
    said = " ".join(str(error.__cause__ or error).split())
    grammar, is_grammar, _ = said.partition(" See https://hydra.cc")
    quotes = "; a list or object is written so: 'layers=[3,6]', a text with commas so: '{query: \"SELECT a, b\"}'"
    return grammar + quotes if is_grammar else said
