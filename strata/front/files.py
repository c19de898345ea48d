"""SAEs in folders: written as SAELens reads them, read whoever wrote them."""

from pathlib import Path
from typing import Any

from strata.formats import read
from strata.run import door
from strata.run.door import BadInput
from strata.run.files import read_json
from strata.sae import disk
from strata.sae.sae import SAE


def sae_of(thing: Any) -> SAE:
    """The SAE itself of what :func:`strata.train` or :func:`strata.merge` gives; an SAE as it is."""
    found = getattr(thing, "sae", thing)
    return door.of_kind("sae", found, SAE, "it must be an SAE, or what strata.train, merge or load gives")


def save(sae: Any, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Write an SAE in the layout that SAELens 6 loads: `cfg.json` and `sae_weights.safetensors`.

    ``sae``: an SAE, or what :func:`strata.train` or :func:`strata.merge` gives. ``metadata`` goes into `cfg.json`.

    >>> strata.save(sae, "my-sae")                                                        # doctest: +SKIP
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise BadInput(f"{target} is a file; an SAE is a folder")
    disk.save(target, sae_of(sae), {**getattr(sae, "origin", {}), **(metadata or {})})


def load(source: str | Path, ending: str | None = None) -> SAE:
    """Read an SAE from a folder or file that Strata, SAELens, sparsify or dictionary_learning wrote, Gemma Scope's
    `params.npz`, an `encoder.npz`, or a `.pt` with weights.

    ``ending``: what the decoder of a `.pt` ends in (identity, tanh or sigmoid), which the file does not say. Raises
    BadInput for what is damaged, or is no SAE that is known here.

    >>> sae = strata.load("my-sae")                                                       # doctest: +SKIP
    """
    path = Path(source).expanduser()
    if (path / disk.CONFIG).is_file() and ending is None:
        return read.read(path).sae if not _ours(path) else disk.load(path)[0]
    return read.read(path, ending).sae


def _ours(folder: Path) -> bool:
    """Whether the SAE is of an architecture that other tools do not have. Raises BadInput for a broken `cfg.json`."""
    config = read_json(folder / disk.CONFIG)
    kind = config.get("architecture") if isinstance(config, dict) else None
    return (folder / disk.WEIGHTS).is_file() and str(kind).startswith("strata_")
