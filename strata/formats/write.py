"""An SAE -> a new folder, in the format of one tool or another."""

from pathlib import Path

from strata.formats import dictionary_learning, npz, sparsify
from strata.formats.found import Found
from strata.run.door import BadInput, one_of
from strata.sae import disk
from strata.sae.sae import SAE

FORMATS = ("strata", "saelens", "sparsify", "dictionary_learning", "npz")


def check_format(form: str) -> None:
    """Refuse an unknown format."""
    one_of(form, FORMATS, "the format")


def check_new(target: Path) -> None:
    """Refuse a folder that is not empty: nothing is overwritten."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} is there already, and nothing is written over; name another folder, or remove it")


def write(folder: Path, found: Found, form: str) -> None:
    """Write an SAE in a format of FORMATS. Raises BadInput for an SAE that this format cannot express.

    The format strata is SAELens's layout too, with architectures of our own for what SAELens cannot express.
    """
    if form != "strata":
        _sayable(found.sae, form)
    match form:
        case "sparsify":
            sparsify.write(folder, found.sae, found.metadata)
        case "dictionary_learning":
            dictionary_learning.write(folder, found.sae, found.metadata)
        case "npz":
            npz.save(folder, found.sae, found.metadata)
        case _:
            disk.save(folder, found.sae, found.metadata, found.density)


def _sayable(sae: SAE, form: str) -> None:
    """Refuse an SAE of sums of parts, or one whose decoder ends in a nonlinearity: only strata can express these."""
    if sae.groups is not None:
        raise BadInput(
            f"its latents are sums of parts, which {form} cannot say; merge with merge.encoder: mean, or write strata"
        )
    if sae.mean is not None:
        raise BadInput(f"its decoder ends in {sae.decoder_activation}, which {form} cannot say; write strata")
