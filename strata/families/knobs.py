"""The section cluster of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from strata.run.params import Section

Score = Literal["composite", "size", "mean", "max", "sparsity"]


class Weights(Section):
    """The weight of each similarity. A similarity with weight 0 is not computed."""

    decoder: float = Field(ge=0)
    profile: float = Field(ge=0)
    correlation: float = Field(ge=0)
    jaccard: float = Field(ge=0)


class Selection(Section):
    """Which clusters, and which of their members, the next stages work on."""

    clusters: Literal["all", "single", "top_n"]
    top_n: int = Field(gt=0, le=1000000)
    single: int = Field(ge=0, le=1000000)
    score: Score
    threshold: float = Field(ge=0)
    per_cluster: int = Field(gt=0, le=1000000)
    latents: Literal["mean", "max", "percentile"]
    percentile: float = Field(ge=0, le=100)


class Map(Section):
    """How directions and documents are laid out in two dimensions."""

    of: Literal["families", "decoder"]
    method: Literal["umap", "pca"]
    neighbours: int = Field(gt=1, le=10000)
    spread: float = Field(ge=0, le=100)


class Stability(Section):
    """How often the clustering is repeated: on resampled documents, and from other seeds."""

    bootstraps: int = Field(ge=0, le=10000)
    reseeds: int = Field(ge=0, le=10000)
    shuffles: int = Field(gt=0, le=1000000)


class Grouping(Section):
    """What the clustering methods need. See params.yaml."""

    method: Literal["agglomerative", "dbscan", "hdbscan", "kmeans"]
    clusters: Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)]
    distance: Annotated[float, Field(gt=0, le=2)] | None
    eps: Annotated[float, Field(gt=0, le=2)] | None
    eps_tries: int = Field(gt=0, le=10000)
    min_samples: int = Field(gt=0, le=1000000)
    min_cluster_size: int = Field(gt=1, le=1000000)


class Cluster(Grouping):
    """How latents are put into families, and what is drawn and selected of these. See params.yaml."""

    run: bool
    weights: Weights
    correlated: float = Field(ge=-1, le=1)
    name_words: int = Field(gt=0, le=1000)
    map: Map
    heatmap: int = Field(gt=0, le=10000)
    stability: Stability
    selection: Selection

    @staticmethod
    def held_bytes(latents: int) -> float:
        """Estimate the peak bytes of similarities and distances: float32 for each pair of living ``latents``."""
        return 10.0 * latents**2

    @model_validator(mode="after")
    def _something_counts(self) -> "Cluster":
        weights = self.weights.model_dump()
        if sum(weights.values()) <= 0:
            raise ValueError(f"weights {weights} count for nothing; give at least one of them more than 0")
        return self
