"""Hold what is looked at, and compute and keep all of it in one thread."""

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import streamlit as st

from apps.dashboard import artifacts
from apps.dashboard.artifacts import Project, Sample

T = TypeVar("T")
MOST = 2000  # vectors or documents that are looked at, if nobody asks for another number
HELD = 32  # results; the largest are samples (10,000 vectors of 1,000 numbers are 40 MB), an SAE, documents' texts


@st.cache_resource
def _worker() -> ThreadPoolExecutor:
    """Return the one thread that computes.

    Each thread that calls torch or numba gets its own team of workers, and UMAP must not run twice at once.
    """
    return ThreadPoolExecutor(1, "compute")


@st.cache_resource(max_entries=HELD, show_spinner="Computing …")
def _kept(key: tuple[Hashable, ...], _work: Callable[[], T]) -> T:
    """Compute ``_work()`` once for a ``key``. Streamlit leaves arguments that begin with _ out of its own key."""
    return _worker().submit(_work).result()


@st.cache_resource(max_entries=1, show_spinner="Loading the model …")
def _kept_alone(key: tuple[Hashable, ...], _work: Callable[[], T]) -> T:
    """Do the same, but keep only the last result."""
    return _worker().submit(_work).result()


@dataclass(frozen=True)
class View:
    """The sidebar's choices. ``stamp``: a number for the files' state; results from other files are not shown."""

    project: Project
    stamp: int
    layer: int
    unit: str
    most: int = MOST
    inliers: bool = True
    seed: int = 0

    def of_files(self, work: Callable[[], T], *key: Hashable) -> T:
        """Return ``work()``, computed once for the same files and the same ``key``.

        ``key`` must name everything else that the result depends on. The result is shared, so nobody may change it.
        """
        return _kept((str(self.project.data), str(self.project.reports), self.stamp, self.layer, *key), work)

    def of_sample(self, work: Callable[[], T], *key: Hashable) -> T:
        """Do the same for a result that also depends on the sample."""
        return self.of_files(work, self.unit, self.most, self.inliers, self.seed, *key)

    def model(self, work: Callable[[], T], *key: Hashable) -> T:
        """Do the same for a model. Only one model at a time is kept."""
        return _kept_alone((str(self.project.data), self.stamp, self.layer, *key), work)

    def now(self, work: Callable[[], T]) -> T:
        """Return ``work()``, computed in the one thread and not kept."""
        return _worker().submit(work).result()

    def page(self, latent: int) -> str | None:
        """Return the address of a latent's page; None where the stage report has not run."""
        return f"/pages/{self.layer}/{latent}.html" if self.project.pages.is_dir() else None

    def link(self, latent: int) -> str | int:
        """Return what a table shows of a latent: the address of its page, or its number where there is none."""
        return self.page(latent) or latent

    def sample(self) -> Sample:
        """Return the seeded sample of stored vectors."""
        return self.of_sample(
            lambda: artifacts.sample(self.project, self.layer, self.unit, self.most, self.inliers, self.seed), "sample"
        )

    def tell_sample(self) -> None:
        """Say how many vectors are looked at."""
        sample = self.sample()
        left = f", {sample.outliers} outliers left out" if self.inliers else ""
        st.caption(f"{len(sample.x):,} {self.unit}s looked at{left}; the sidebar says how many, and draws others.")
