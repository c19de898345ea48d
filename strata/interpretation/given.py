"""Names that people gave to latents, in `labels.yaml`. They win over those that Strata finds.

The file maps an SAE to the names of its latents. An SAE is written `9/3f2a9c0d1e4b5a67`: its layer, and the hash of its
decoder, so that a name never stands at a latent of another SAE. People edit the file; what Strata writes to it leaves
their comments and their order as they are.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from strata.run import params
from strata.run.door import BadInput

if TYPE_CHECKING:  # a terminal that shows a card need not wait for it
    from torch import Tensor

FILE = "labels.yaml"
BY = "person"  # the source of such a name, beside those of explanations
LONGEST = 80  # characters of a name
INDENT = "  "

Names = dict[int, str]  # latent -> its name


def hash_of(decoder: "Tensor") -> str:
    """Return what an SAE is known by: the first 16 digits of its decoder's SHA-256. ``decoder``: (latent, width)."""
    return hashlib.sha256(decoder.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def key(layer: int, sae: str) -> str:
    """Return the key of an SAE in the file. ``sae``: its hash."""
    return f"{layer}/{sae}"


def read(path: Path) -> dict[str, Names]:
    """Read all names, by the keys of their SAEs; there are none where there is no file. Raises BadInput."""
    return parsed(path.read_text(encoding="utf-8"), path) if path.exists() else {}


def parsed(text: str, path: Path) -> dict[str, Names]:
    """Read all names that ``text``, which is that of ``path``, gives. Raises BadInput, also for a name that is none."""
    if all(line.strip()[:1] in ("", "#") for line in text.splitlines()):
        return {}
    found = params.check(params.parse_yaml(text, path), dict[str, dict[int, str] | None], str(path))
    for sae, names in found.items():
        for latent, name in (names or {}).items():
            check(name, f"{path}: the name of latent {latent} of {sae}")
    return {sae: names or {} for sae, names in found.items()}


def check(name: str, what: str) -> None:
    """Refuse a name that is empty, long, or of several lines. ``what``: what the message calls it."""
    if not name.strip() or not name.isprintable() or len(name) > LONGEST:
        raise BadInput(f"{what} must be one line of 1 to {LONGEST} characters")


def of(path: Path, layer: int, sae: str, latents: int) -> Names:
    """Return the names of one SAE's latents. Says so on stderr where all names of its layer are of other SAEs.

    ``sae``: its hash; ``latents``: how many it has. Raises BadInput where the file names a latent that it lacks.
    """
    everything = read(path)
    names = everything.get(key(layer, sae), {})
    if beyond := [latent for latent in names if not 0 <= latent < latents]:
        raise BadInput(
            f"{path}: {key(layer, sae)} names latent {beyond[0]}, but the SAE has {latents}: 0 to {latents - 1}"
        )
    if not names and (others := sum(len(them) for sae, them in everything.items() if sae.startswith(f"{layer}/"))):
        sys.stderr.write(
            f"{path}: {others} names of layer {layer} are of other SAEs; `python -m src.relabel {layer} FOLDER`, with "
            "the folder of such an SAE, carries them over\n"
        )
    return names


def written(text: str, path: Path, sae: str, latent: int, name: str | None) -> str:
    """Return the ``text`` of the file ``path`` with another ``name`` of a latent, and all else as it is.

    ``sae``: the key of its SAE. ``name``: None takes the name away. Raises BadInput where a person wrote the names of
    the SAE in another way than one a line.
    """
    wanted = parsed(text, path)
    if name is not None:
        wanted.setdefault(sae, {})[latent] = name
    elif latent not in wanted.get(sae, {}):
        return text
    else:
        del wanted[sae][latent]

    lines, places = text.splitlines(), params.lines_of(text)
    inside = {last: line for (*before, last), line in places.items() if before == [sae]}  # latent -> its line, from 1
    indent = INDENT
    if inside:
        first = lines[min(inside.values()) - 1]
        indent = first[: len(first) - len(first.lstrip())]
    line = [f"{indent}{latent}: {json.dumps(name, ensure_ascii=False)}"] if name is not None else []

    if str(latent) in inside:
        at = inside[str(latent)] - 1
        lines[at : at + 1] = line
    elif (sae,) in places:
        at = max([places[sae,], *inside.values()])
        lines[at:at] = line
    elif line:
        lines += [f"{sae}:", *line]

    changed = "\n".join(lines) + "\n"
    try:
        as_wanted = parsed(changed, path) == wanted
    except BadInput:
        as_wanted = False
    if not as_wanted:
        raise BadInput(f"{path}: the names of {sae} are not written one a line; change that of latent {latent} there")
    return changed
