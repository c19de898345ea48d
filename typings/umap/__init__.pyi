"""What is used of UMAP. From its source pyright would infer all of it, for a fifth of its time."""

from typing import Any

from numpy.typing import NDArray

layouts: Any
umap_: Any

class UMAP:
    def __init__(
        self,
        *,
        n_neighbors: int,
        min_dist: float,
        n_epochs: int | None = None,
        init: str | NDArray[Any] = "spectral",
        random_state: int,
        n_jobs: int,
        precomputed_knn: tuple[NDArray[Any], NDArray[Any], None],
    ) -> None: ...
    def fit_transform(self, X: NDArray[Any]) -> NDArray[Any]: ...
