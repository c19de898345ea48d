"""Write names that people give to latents into `labels.yaml`."""

from pathlib import Path
from typing import NamedTuple

from strata.interpretation import given
from strata.replication.match import NOBODY, assigned, by_cosine
from strata.run.door import BadInput
from strata.run.files import read_meta, write_text
from strata.sae import disk

ALIKE = 0.7  # cosine of two decoder rows from which a name is carried over, as stability has it
META = {"layer": int, "latents": int, "sae": str}


class Carried(NamedTuple):
    """A name of another SAE: its latent there, and the one here that is most like it, None if there is none.

    ``known``: whether the latent here has a name of its own already, which stays.
    """

    name: str
    there: int
    here: int | None
    cosine: float
    known: bool


def label(latents: Path, latent: int, name: str, labels: Path) -> str:
    """Give a latent a name, or with an empty one take its name away. Returns the key of its SAE in ``labels``.

    ``latents``: `data/latents/<L>/`. Raises BadInput for a latent that the SAE lacks, and for a name that is none.
    """
    meta = read_meta(latents / "meta.json", META, "interpret")
    if not 0 <= latent < meta["latents"]:
        raise BadInput(f"layer {meta['layer']} has no latent {latent}: it has 0 to {meta['latents'] - 1}")
    if name:
        given.check(name, "the name")
    sae = given.key(meta["layer"], meta["sae"])
    write_text(labels, given.written(_text(labels), labels, sae, latent, name or None))
    return sae


def carry(layer: int, other: Path, own: Path, labels: Path) -> list[Carried]:
    """Carry the names of the SAE in ``other`` over to the one in ``own``, and return what came of each.

    Latents are matched one to one by the cosine of their decoder rows, among the pairs above ALIKE. A name that stands
    here already stays, and so do the names of the other SAE. Raises BadInput where that one has no names, or the two
    differ in their width.
    """
    (there, _), (here, _) = disk.load(other), disk.load(own)
    if there.width != here.width:
        raise BadInput(
            f"{other} is of width {there.width}, and {own} of {here.width}: their latents cannot be compared"
        )
    everything = given.read(labels)
    names = everything.get(given.key(layer, given.hash_of(there.decoder)))
    if not names:
        raise BadInput(f"{labels} has no names of {other} at layer {layer}")

    pairs = by_cosine(there.decoder, here.decoder, ALIKE)
    cosines = {
        (int(a), int(b)): float(value) for a, b, value in zip(pairs.first, pairs.second, pairs.value, strict=True)
    }
    partner, sae = assigned(pairs), given.key(layer, given.hash_of(here.decoder))
    text, own_names, found = _text(labels), everything.get(sae, {}), []
    for latent, name in names.items():
        at = int(partner[latent])
        if at == NOBODY:
            found.append(Carried(name, latent, None, 0.0, False))
            continue
        found.append(Carried(name, latent, at, cosines[latent, at], at in own_names))
        if at not in own_names:
            text = given.written(text, labels, sae, at, name)
    write_text(labels, text)
    return found


def _text(labels: Path) -> str:
    """Return the text of the file; it may be missing."""
    return labels.read_text(encoding="utf-8") if labels.exists() else ""
