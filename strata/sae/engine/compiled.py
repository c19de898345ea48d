"""Numba's decorator, and where it keeps what it compiled: in the user's checkout, also for a queued experiment.

Numba keeps a function beside its source file, and DVC gives every experiment of its queue, and of ``--temp``, fresh
files. What is kept is told by the SHA-256 of the source, so that an experiment with other code compiles its own; that
of its own file is not enough where functions of other files are compiled into it.
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
    """For this project's own functions; Numba asks the next locator about all others."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        if "DVC_ROOT" in os.environ:  # where DVC runs a stage
            folder = Path(os.environ["DVC_ROOT"]) / Path(file).relative_to(ROOT).parent
            self._cache_path = str(folder / "__pycache__")
        names = {file, *(_file(value) for value in function.__globals__.values())}
        self._sources = sorted(name for name in names if name and Path(name).is_relative_to(ROOT))

    def get_source_stamp(self) -> str:
        """Of all files that have code of the function, as far as it names them itself."""
        return hashlib.sha256(b"".join(Path(name).read_bytes() for name in self._sources)).hexdigest()

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> Self | None:
        wanted_elsewhere = getattr(config, "CACHE_DIR", None)  # a folder of the user's own
        if wanted_elsewhere or not Path(file).is_relative_to(ROOT / "strata"):
            return None
        return super().from_function(function, file)


def _file(value: Any) -> str | None:
    """Where a function for Numba to compile, or one that writes LLVM's code, stands."""
    function = getattr(value, "py_func", None) or getattr(value, "_defn", None)
    return function.__code__.co_filename if function else None


NUMBAS_OWN = "UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator,IPythonCacheLocator,ZipCacheLocator"
others = os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES") or NUMBAS_OWN
config.CACHE_LOCATOR_CLASSES = f"{__name__}.InTheCheckout,{others}"  # pyright: ignore[reportAttributeAccessIssue]


def keep_umap() -> None:
    """Let Numba keep UMAP's loops too, in the environment; UMAP compiles them in every process, for 5 s."""
    from umap import layouts, umap_

    loops = umap_.smooth_knn_dist, umap_.compute_membership_strengths
    for loop in (*loops, layouts._nb_optimize_layout_euclidean_single_epoch):
        loop.enable_caching()
