"""What rows with known features are made of. The defaults are SynthSAEBench-16k at an eighth of its features.

Chanin & Garriga-Alonso 2026, "SynthSAEBench: Evaluating sparse autoencoders on scalable realistic synthetic data"
(arXiv 2602.14687).
"""

from dataclasses import dataclass

from strata.run import door
from strata.run.door import BadInput


@dataclass(frozen=True)
class Config:
    """The sizes and distributions of a :class:`strata.synthetic.truth.Truth`. Raises BadInput for what cannot be.

    ``features``: the number of true features. ``width``: the numbers of a row.

    Firing: feature i (from 1) wants to be active on a share of the rows that falls from ``most`` to ``least`` as
    1 / i^``exponent`` does (Zipf).

    Hierarchy: ``roots`` trees, breadth first; each feature above ``depth`` has ``children`` children, until no feature
    is left. The rest belongs to no tree. ``exclusive``: the share of the parents whose children exclude each other.
    ``compensate``: raise the probabilities of children by what their parents and siblings will take from them.
    ``scale_children``: multiply a child by its parent's activation over the parent's mean.

    Correlations: a Gaussian copula of ``rank`` shared factors, whose loadings have the standard deviation
    ``correlation``. Rank 0: features that belong to no tree are independent.

    Magnitudes: when active, feature i is relu(N(m_i, s_i²)). m falls in equal steps from ``magnitude_first`` to
    ``magnitude_last``; s is |N(``spread_mean``, ``spread_deviation``²)|, drawn once for each feature.

    Directions: random unit vectors, made more orthogonal by ``orthogonal_steps`` steps of Adam at ``orthogonal_rate``.
    ``bias``: the length of what is added to each row.
    """

    features: int = 2048
    width: int = 256
    most: float = 0.4
    least: float = 5e-4
    exponent: float = 0.5
    roots: int = 16
    children: int = 4
    depth: int = 3
    exclusive: float = 1.0
    compensate: bool = True
    scale_children: bool = True
    rank: int = 25
    correlation: float = 0.1
    magnitude_first: float = 5.0
    magnitude_last: float = 4.0
    spread_mean: float = 0.5
    spread_deviation: float = 0.5
    orthogonal_steps: int = 100
    orthogonal_rate: float = 3e-4
    bias: float = 0.5

    def __post_init__(self) -> None:
        least_values = {"features": 1, "width": 1, "roots": 0, "children": 2, "depth": 1, "rank": 0}
        for name, least in {**least_values, "orthogonal_steps": 0}.items():
            door.whole(name, getattr(self, name), least)

        for name in (
            *("most", "least", "exponent", "exclusive", "correlation", "bias", "orthogonal_rate"),
            *("magnitude_first", "magnitude_last", "spread_mean", "spread_deviation"),
        ):
            _at_least_zero(name, getattr(self, name))

        if not 0 < self.least <= self.most <= 1:
            raise BadInput(
                f"most is {self.most} and least {self.least}; they are shares of the rows, so it must be that "
                "0 < least <= most <= 1"
            )
        if self.exclusive > 1:
            raise BadInput(f"exclusive is {self.exclusive}; it is a share of the parents, so at most 1")
        if self.scale_children and self.roots and not min(self.magnitude_first, self.magnitude_last) > 0:
            raise BadInput("scale_children divides by a parent's mean, so both magnitudes must be above 0")


def _at_least_zero(name: str, value: float) -> None:
    """Raise BadInput unless ``value`` is a finite number of at least 0."""
    door.finite(name, value)
    if value < 0:
        raise BadInput(f"{name} is {value}; it must be at least 0")


PUBLISHED = Config(features=16384, width=768, roots=128)  # SynthSAEBench-16k
