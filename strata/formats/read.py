"""An SAE of any known tool, which is told by the names of its files."""

from pathlib import Path

from strata.formats import dictionary_learning, gemma_scope, npz, saelens, sparsify, state, state_dicts
from strata.formats.found import Found
from strata.run.door import BadInput

KNOWN = {  # files in a folder -> the tool that writes them
    (saelens.CONFIG, saelens.WEIGHTS): "SAELens",
    (sparsify.CONFIG, sparsify.WEIGHTS): "sparsify",
    (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS): "dictionary_learning",
    (gemma_scope.FILE,): "Gemma Scope",
    (npz.ENCODER,): "encoder.npz",
}


def read(path: Path, ending: str | None = None) -> Found:
    """Read the SAE in a folder or file. ``ending``: what its decoder ends in, see :mod:`strata.formats.state_dicts`.

    Raises BadInput for files of no known tool, and for an ``ending`` where the files themselves say it.
    """
    if path.suffix in state.SUFFIXES and path.is_file() and not _of_dictionary_learning(path):
        return state_dicts.read(path, ending)
    if ending is not None:
        raise BadInput(f"{path} says itself what its decoder ends in; leave out {ending!r}")
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".npz":
        return gemma_scope.read(path) if "W_enc" in npz.read(path) else _arrays(path)
    if path.suffix in state.SUFFIXES and path.is_file():
        return dictionary_learning.read(path)
    if path.suffix == ".safetensors" or path.name == saelens.CONFIG:
        return _folder(path.parent)
    raise BadInput(f"{path} is {'no SAE that can be read here' if path.exists() else 'missing'}")


def _of_dictionary_learning(path: Path) -> bool:
    """Say whether a `.pt` is dictionary_learning's: an `ae….pt` in a folder with the configuration.

    A checkpoint is in the folder `checkpoints` beside the configuration.
    """
    folder = path.absolute().parent  # not resolved, because the hub's cache consists of links
    folders = [folder, folder.parent] if folder.name == "checkpoints" else [folder]
    return path.stem.startswith("ae") and any((folder / dictionary_learning.CONFIG).is_file() for folder in folders)


def _folder(folder: Path) -> Found:
    """Read the SAE in a folder, by the first tool of KNOWN whose files are all there."""
    names = next((names for names in KNOWN if all((folder / name).is_file() for name in names)), None)
    if names is None:
        wanted = "; ".join(f"{tool}: {', '.join(names)}" for names, tool in KNOWN.items())
        present = sorted(path.name for path in folder.iterdir())[:8]
        raise BadInput(
            f"{folder} holds {', '.join(present) or 'nothing'}, which is no SAE that is known here ({wanted})"
        )

    match KNOWN[names]:
        case "SAELens":
            return saelens.read(folder)
        case "sparsify":
            return sparsify.read(folder)
        case "dictionary_learning":
            return dictionary_learning.read(folder / dictionary_learning.WEIGHTS)
        case "Gemma Scope":
            return gemma_scope.read(folder / gemma_scope.FILE)
        case _:
            return _arrays(folder / npz.ENCODER)


def _arrays(path: Path) -> Found:
    """Read an `encoder.npz`, with the `decoder.npz` beside it if there is one."""
    sae, config = npz.load(path)
    notes = () if path.with_name(npz.DECODER).exists() else ("there is no decoder.npz, so the encoder's rows decode",)
    return Found(sae, "npz", "topk" if sae.k is not None else "jumprelu", config["metadata"], notes)
