"""Which tool an SAE is of is seen in its files."""

from pathlib import Path

from strata.formats import dictionary_learning, gemma_scope, saelens, sparsify, state, state_dicts
from strata.formats.found import Found
from strata.run.door import BadInput
from strata.sae import npz

KNOWN = {  # files in a folder -> whose they are
    (saelens.CONFIG, saelens.WEIGHTS): "SAELens",
    (sparsify.CONFIG, sparsify.WEIGHTS): "sparsify",
    (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS): "dictionary_learning",
    (gemma_scope.FILE,): "Gemma Scope",
    (npz.ENCODER,): "encoder.npz",
}


def read(path: Path, ending: str | None = None) -> Found:
    """The SAE in a folder or file. ``ending``: see :mod:`strata.formats.state_dicts`."""
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
    """A checkpoint stands in a folder beside the configuration."""
    folder = path.absolute().parent  # a bare name has none; not resolved, since the hub's cache holds links
    folders = [folder, *[folder.parent] * (folder.name == "checkpoints")]
    return path.stem.startswith("ae") and any((folder / dictionary_learning.CONFIG).is_file() for folder in folders)


def _folder(folder: Path) -> Found:
    names = next((names for names in KNOWN if all((folder / name).is_file() for name in names)), None)
    if names is None:
        wanted = "; ".join(f"{tool}: {', '.join(names)}" for names, tool in KNOWN.items())
        held = sorted(path.name for path in folder.iterdir())[:8]
        raise BadInput(f"{folder} holds {', '.join(held) or 'nothing'}, which is no SAE that is known here ({wanted})")
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
    sae, config = npz.load(path)
    notes = () if path.with_name(npz.DECODER).exists() else ("there is no decoder.npz, so the encoder's rows decode",)
    return Found(sae, "npz", "topk" if sae.k is not None else "jumprelu", config["metadata"], notes)
