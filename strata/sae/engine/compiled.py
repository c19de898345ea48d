"""Numba's decorator, and the place where Numba keeps compiled functions: the user's checkout, also in experiments.

Numba keeps a compiled function beside its source file. DVC gives each experiment of its queue, and of ``--temp``, fresh
files, so that nothing would be kept. Here the folder in the user's checkout is used instead, and the SHA-256 of the
source tells whether a compiled function fits, so that an experiment with other code compiles its own. The hash covers
more than the function's own file, because functions of other files are compiled into it.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from numba import config, njit
from numba.core.caching import InTreeCacheLocator

__all__ = ["keep_umap", "njit"]

ROOT = Path(__file__).resolve().parents[3]


class InTheCheckout(InTreeCacheLocator):
    """Says where compiled functions of this project are kept. Numba asks the next locator about all others."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        if "DVC_ROOT" in os.environ:  # where DVC runs a stage
            folder = Path(os.environ["DVC_ROOT"]) / Path(file).relative_to(ROOT).parent
            self._cache_path = str(folder / "__pycache__")
        names = {file, *(_file(value) for value in function.__globals__.values())}
        self._sources = sorted(name for name in names if name and Path(name).is_relative_to(ROOT))

    def get_source_stamp(self) -> str:
        """Return the hash of all files with code of the function: its own, and those of functions that it names."""
        return hashlib.sha256(b"".join(Path(name).read_bytes() for name in self._sources)).hexdigest()

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> Self | None:
        wanted_elsewhere = getattr(config, "CACHE_DIR", None)  # a folder of the user's own
        if wanted_elsewhere or not Path(file).is_relative_to(ROOT / "strata"):
            return None
        return super().from_function(function, file)


def _file(value: Any) -> str | None:
    """Return the source file of a function that Numba compiles, or that writes LLVM code; None for anything else."""
    function = getattr(value, "py_func", None) or getattr(value, "_defn", None)
    return function.__code__.co_filename if function else None


NUMBAS_OWN = "UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator,IPythonCacheLocator,ZipCacheLocator"
others = os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES") or NUMBAS_OWN
config.CACHE_LOCATOR_CLASSES = f"{__name__}.InTheCheckout,{others}"  # pyright: ignore[reportAttributeAccessIssue]


def keep_umap() -> None:
    """Let Numba keep UMAP's loops, too, beside UMAP's files. Without this each process compiles them for 5 s."""
    from umap import layouts, umap_

    loops = umap_.smooth_knn_dist, umap_.compute_membership_strengths
    for loop in (*loops, layouts._nb_optimize_layout_euclidean_single_epoch):
        loop.enable_caching()
