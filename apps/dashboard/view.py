"""What is being looked at, and the one thread in which all of it is computed and kept."""

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import streamlit as st

from apps.dashboard import artifacts
from apps.dashboard.artifacts import Project, Sample

T = TypeVar("T")
# Results; the largest are samples (10,000 vectors of 1,000 numbers are 40 MB), an SAE, the texts of documents.
HELD = 32


@st.cache_resource
def _worker() -> ThreadPoolExecutor:
    """Each thread that calls torch or numba gets a team of its own, and UMAP must not run twice at once."""
    return ThreadPoolExecutor(1, "compute")


@st.cache_resource(max_entries=HELD, show_spinner="Computing …")
def _kept(key: tuple[Hashable, ...], _work: Callable[[], T]) -> T:
    return _worker().submit(_work).result()


@st.cache_resource(max_entries=1, show_spinner="Loading the model …")
def _one(key: tuple[Hashable, ...], _work: Callable[[], T]) -> T:
    return _worker().submit(_work).result()


@dataclass(frozen=True)
class View:
    """The sidebar's choices. ``stamp``: of the files; what was computed from older ones is not shown again."""

    project: Project
    stamp: int
    layer: int
    unit: str
    most: int
    inliers: bool
    seed: int

    def of_files(self, work: Callable[[], T], *key: Hashable) -> T:
        """``work()``, once for the same ``key`` (which must name all that it depends on) and the same files. Its result
        is shared: nobody may change it."""
        return _kept((str(self.project.data), str(self.project.reports), self.stamp, self.layer, *key), work)

    def of_sample(self, work: Callable[[], T], *key: Hashable) -> T:
        """The same of what also depends on the sample."""
        return self.of_files(work, self.unit, self.most, self.inliers, self.seed, *key)

    def model(self, work: Callable[[], T], *key: Hashable) -> T:
        """The same of a model, of which one at a time is kept."""
        return _one((str(self.project.data), self.stamp, self.layer, *key), work)

    def now(self, work: Callable[[], T]) -> T:
        """``work()`` in the one thread, not kept."""
        return _worker().submit(work).result()

    def sample(self) -> Sample:
        """The seeded sample of stored vectors."""
        return self.of_sample(
            lambda: artifacts.sample(self.project, self.layer, self.unit, self.most, self.inliers, self.seed), "sample"
        )
