"""Write names that people give to latents into `labels.yaml`."""

from pathlib import Path
from typing import NamedTuple

from strata.interpretation import labels
from strata.interpretation.labels import key
from strata.interpretation.read import open_latents
from strata.replication.match import NOBODY, assigned, by_cosine
from strata.run.door import BadInput
from strata.run.files import write_text
from strata.sae import disk

ALIKE = 0.7  # cosine of two decoder rows above which a name is carried over, as in stability


class Carried(NamedTuple):
    """What came of a name of another SAE.

    ``latent``: the one that has the ``name`` in the other SAE. ``partner``: the one of this SAE that it is matched
    with, at this ``cosine`` of their decoder rows; None if there is none. ``own``: the name that the partner had
    before, and keeps.
    """

    name: str
    latent: int
    partner: int | None
    cosine: float
    own: str | None


def label(folder: Path, latent: int, name: str, path: Path) -> str:
    """Give a latent a name in the file ``path``, or with an empty one take its name away. Returns the SAE's key there.

    ``folder``: `data/latents/<L>/`. Raises BadInput for a latent that is dead or not there, and for a name that is
    none.
    """
    latents = open_latents(folder)
    layer, count = latents.meta["layer"], latents.meta["latents"]
    if "sae" not in latents.meta:
        raise BadInput(f"{folder} does not say of which SAE it is; run interpret again")
    if not 0 <= latent < count:
        raise BadInput(f"layer {layer} has no latent {latent}: it has 0 to {count - 1}")
    if name:
        labels.check(name, "the name")
        if latents.rows("statistics", latent)[0]["dead"]:
            raise BadInput(f"latent {latent} of layer {layer} is dead: nothing in the corpus makes it fire")

    sae = key(layer, latents.meta["sae"])
    _write(path, labels.changed(labels.read_text(path), path, sae, {latent: name or None}))
    return sae


def carry(layer: int, other: Path, own: Path, path: Path) -> list[Carried]:
    """Carry the names of the SAE in ``other`` over to the one in ``own``, and return what came of each.

    Latents are matched one to one so that the sum of the cosines of their decoder rows is largest, among the pairs
    above ALIKE. A name that a latent has already stays, and so do the names of the other SAE. Raises BadInput where
    that one has no names in the file ``path``, or a latent that it lacks, or where the two SAEs differ in their width.
    """
    (before, _), (after, _) = disk.load(other), disk.load(own)
    if before.width != after.width:
        raise BadInput(f"{other} is of width {before.width}, and {own} of {after.width}; their latents do not compare")
    everything = labels.read(path)
    names = everything.get(key(layer, disk.decoder_hash(before)))
    if not names:
        raise BadInput(f"{path} has no names of {other} at layer {layer}")
    if beyond := [latent for latent in names if latent >= before.latents]:
        raise BadInput(f"{path}: {other} has no latent {beyond[0]}: it has 0 to {before.latents - 1}")

    pairs = by_cosine(before.decoder, after.decoder, ALIKE)
    cosines = {
        (int(a), int(b)): float(value) for a, b, value in zip(pairs.first, pairs.second, pairs.value, strict=True)
    }
    partners, sae = assigned(pairs), key(layer, disk.decoder_hash(after))
    known, results = everything.get(sae, {}), []
    for latent, name in names.items():
        partner = int(partners[latent]) if partners[latent] != NOBODY else None
        cosine = cosines[latent, partner] if partner is not None else 0.0
        results.append(Carried(name, latent, partner, cosine, known.get(partner) if partner is not None else None))

    new = {one.partner: one.name for one in results if one.partner is not None and one.own is None}
    _write(path, labels.changed(labels.read_text(path), path, sae, new))
    return results


def _write(path: Path, text: str) -> None:
    """Write the file, where it is a link the file behind it."""
    write_text(path.resolve(), text)
