"""Names that people gave to latents: the file `labels.yaml`. They win over those that Strata finds.

The file maps an SAE to the names of its latents. An SAE is written `9/3f2a9c0d1e4b5a67`: its layer, and the hash of its
decoder, so that a name never stands at a latent of another SAE. People edit the file. What Strata writes to it leaves
their order, their comments and their line ends as they are, but for a comment behind a name that changes.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from strata.interpretation.read import Latents, open_latents
from strata.run import params
from strata.run.door import BadInput
from strata.run.files import absolute

FILE = "labels.yaml"
LONGEST = 80  # characters of a name
SAE_KEY = re.compile(r"(?:0|[1-9]\d*)/[0-9a-f]{16}")
LATENT_KEY = re.compile(r"0|[1-9]\d*")
NO_TEXT = {"Cc", "Cn", "Co", "Cs", "Zl", "Zp"}  # categories of characters that no name has: controls, line ends
TURNING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}  # they turn the text behind them round
INDENT = "  "

Names = dict[int, str]  # latent -> its name


def key(layer: int, decoder_hash: str) -> str:
    """Return the key of an SAE in the file. ``decoder_hash``: see `strata.sae.disk.decoder_hash`."""
    return f"{layer}/{decoder_hash}"


def open_named(folder: Path) -> Latents:
    """Open `data/latents/<L>/` with what stands beside it: `data/explained/<L>/`, if explain ran, and `labels.yaml`."""
    place = absolute(folder)
    explained = place.parent.parent / "explained" / place.name
    latents = open_latents(folder, explained if (explained / "meta.json").exists() else None)
    return named(latents, place.parents[2] / FILE)


def named(latents: Latents, path: Path) -> Latents:
    """Give ``latents`` the names that the file ``path`` has of them.

    Says so on stderr, once, where all that the file has of their layer is of other SAEs. Raises BadInput where it names
    a latent that the SAE lacks.
    """
    meta = latents.meta
    layer, everything = meta["layer"], read(path)
    sae = key(layer, meta["sae"]) if "sae" in meta else None
    names = everything.get(sae, {}) if sae else {}
    if beyond := [latent for latent in names if latent >= meta["latents"]]:
        raise BadInput(f"{path}: {sae} has no latent {beyond[0]}: it has 0 to {meta['latents'] - 1}")

    others = {other: of for other, of in everything.items() if other.partition("/")[0] == str(layer) and of}
    if others and sae not in others:
        _tell(
            f"{path}: what it names of layer {layer} are latents of another SAE, {', '.join(others)}; "
            f"`python -m src.relabel {layer} FOLDER`, with that SAE in FOLDER, carries the names over"
            if sae
            else f"{path}: {latents.folder} does not say of which SAE it is; run interpret again to see your names"
        )
    return replace(latents, names_by_people=names)


@cache
def _tell(sentence: str) -> None:
    """Say something on stderr, once in this process: a dashboard opens latents again and again."""
    sys.stderr.write(f"{sentence}\n")


# --- the file ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Names]:
    """Read all names, by the keys of their SAEs; there are none where there is no file. Raises BadInput."""
    return parsed(read_text(path), path)


def read_text(path: Path) -> str:
    """Read the file, with its line ends as they are; "" where there is none. Raises BadInput."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not UTF-8; save it as such") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None


def parsed(text: str, path: Path) -> dict[str, Names]:
    """Read all names in ``text``, which is that of the file ``path``. Raises BadInput that names the line."""
    if all(line.strip()[:1] in ("", "#") or line.strip() in ("---", "...") for line in text.splitlines()):
        return {}
    try:
        values = params.parse_yaml(text, path)
    except BadInput as error:
        raise BadInput(f"{error}; put names in quotes") from None

    names: dict[str, Names] = {}
    for place, line in sorted(params.lines_of(text).items(), key=lambda item: item[1]):
        sae, where = place[0], f"{path}, line {line}"
        if len(place) == 1:
            if not SAE_KEY.fullmatch(sae):
                raise BadInput(f"{where}: {sae!r} is no SAE; one is written like 9/3f2a9c0d1e4b5a67")
            if not isinstance(values[sae], dict | None):
                raise BadInput(f"{where}: below {sae} stand its latents and their names, one a line")
            names[sae] = {}
        elif len(place) == 2:
            if not LATENT_KEY.fullmatch(place[1]):
                raise BadInput(f"{where}: {place[1]!r} is no number of a latent")
            name = values[sae].get(int(place[1]))
            if not isinstance(name, str):
                raise BadInput(f"{where}: the name of latent {place[1]} is no text; put it in quotes")
            check(name, f"{where}: the name of latent {place[1]}")
            names[sae][int(place[1])] = name
    return names


def check(name: str, what: str) -> None:
    """Refuse a name that is empty, long, or of several lines. ``what``: what the message calls it."""
    if any(unicodedata.category(c) in NO_TEXT or c in TURNING for c in name):
        raise BadInput(f"{what} has a line end or a character that cannot be shown")
    if not name.strip() or len(name) > LONGEST:
        raise BadInput(f"{what} must have 1 to {LONGEST} characters")


def changed(text: str, path: Path, sae: str, changes: Mapping[int, str | None]) -> str:
    """Return the ``text`` of the file ``path`` with other names, and all else as it is.

    ``sae``: the key of their SAE. ``changes``: latent -> its name, or None, which takes the name away. Raises BadInput
    where the names of the SAE are not written one a line.
    """
    wanted = parsed(text, path)
    before = wanted.get(sae, {})
    after = {latent: name for latent, name in {**before, **changes}.items() if name is not None}
    if after == before:
        return text
    wanted[sae] = after

    line_end = "\r\n" if "\r\n" in text else "\n"
    lines, places = text.replace("\r\n", "\n").removesuffix("\n").split("\n"), params.lines_of(text)
    line_of = {int(place[1]): line - 1 for place, line in places.items() if len(place) == 2 and place[0] == sae}
    first = lines[min(line_of.values())] if line_of else INDENT
    indent = first[: len(first) - len(first.lstrip())]

    def line(latent: int, name: str) -> str:
        return f"{indent}{latent}: {json.dumps(name, ensure_ascii=False)}"

    # New names go behind the last one of the SAE. Lines are then changed from the last to the first, so that those
    # before stay where they are.
    new = [line(latent, name) for latent, name in after.items() if latent not in before]
    if (sae,) in places:
        end = max([places[sae,] - 1, *line_of.values()]) + 1
        lines[end:end] = new
    else:
        lines = [*(lines if text else []), f"{sae}:", *new]
    for latent, at in sorted(line_of.items(), key=lambda item: -item[1]):
        if latent not in after:
            del lines[at]
        elif after[latent] != before[latent]:
            lines[at] = line(latent, after[latent])

    written = line_end.join(lines) + line_end
    try:
        as_wanted = parsed(written, path) == wanted
    except BadInput:
        as_wanted = False
    if not as_wanted:
        raise BadInput(f"{path}: the names of {sae} are not written one a line; change them there")
    return written
