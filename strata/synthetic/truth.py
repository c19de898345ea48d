"""The true features: directions, how often and how strongly they fire, and what they have to do with each other."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from strata.sae.engine.dispatch import decode
from strata.sae.engine.pattern import Pattern
from strata.sae.sae import Codes
from strata.synthetic.config import Config
from strata.synthetic.forest import Forest, forest, winners

FREE = 0.01  # at least this share of the variance of a feature's Gaussian is its own
CHUNK = 1024  # directions whose dot products with all others are in memory together
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of Adam


class Entries(NamedTuple):
    """The active features of some rows: ``row``, ``feature`` and ``value``, (entries,) each."""

    row: Tensor
    feature: Tensor
    value: Tensor

    def where(self, kept: Tensor) -> "Entries":
        """Return the entries where ``kept`` (entries,) is True."""
        return Entries(self.row[kept], self.feature[kept], self.value[kept])


@dataclass(frozen=True)
class Truth:
    """What rows are drawn from. Each tensor has an entry, or a row, for each feature.

    ``directions``: (feature, width), of norm 1. ``probability``: (feature,), of firing, before the trees take their
    part. ``mean`` and ``deviation``: (feature,), of the magnitude when active. ``loadings``: (feature, rank), of the
    copula's factors. ``bias``: (width,), added to each row. ``scale_children``: see :class:`Config`.
    """

    directions: Tensor
    probability: Tensor
    mean: Tensor
    deviation: Tensor
    loadings: Tensor
    trees: Forest
    bias: Tensor
    scale_children: bool

    @property
    def features(self) -> int:
        return len(self.directions)

    @property
    def width(self) -> int:
        return self.directions.shape[1]

    @cached_property
    def threshold(self) -> Tensor:
        """(feature,) what a standard Gaussian exceeds with the feature's probability; a probability of 1 gives -inf."""
        return math.sqrt(2) * torch.erfinv(1 - 2 * self.probability)

    @cached_property
    def own(self) -> Tensor:
        """(feature,) the standard deviation of the Gaussian's part that no other feature shares."""
        return (1 - self.loadings.square().sum(1)).sqrt()

    def sample(self, rows: int, generator: torch.Generator) -> Codes:
        """Draw the true activations of ``rows`` rows.

        A feature fires where g = L z + own ε, a Gaussian of variance 1, exceeds its threshold; z is shared by the
        features of a row. Then its magnitude is drawn. A child needs an active parent, and no sibling that wins. So
        features without a parent are drawn first, then the children of those that are active, and so on down the trees:
        what a silent parent would silence is never drawn.
        """
        shared = torch.randn(rows, self.loadings.shape[1], generator=generator)
        tops = self.trees.tops
        gaussian = torch.randn(rows, len(tops), generator=generator)
        gaussian.mul_(self.own[tops]).addmm_(shared, self.loadings[tops].T)
        row, top = (gaussian > self.threshold[tops]).nonzero(as_tuple=True)

        feature = tops[top]
        value = self.mean[feature] + self.deviation[feature] * torch.randn(len(feature), generator=generator)
        levels = [Entries(row, feature, value).where(value > 0)]
        while len(levels[-1].row):
            levels.append(self._children(levels[-1], shared, generator))
        row, feature, value = (torch.cat(parts) for parts in zip(*levels, strict=True))

        place, order = (row * self.features + feature).sort()
        counts = torch.bincount(row, minlength=rows)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Codes(value[order], Pattern(starts, place % self.features, self.features))

    def _children(self, above: Entries, shared: Tensor, generator: torch.Generator) -> Entries:
        """Draw the children of active features, the entries ``above``. ``shared``: z, (row, rank)."""
        feature, parent = self.trees.below(above.feature)
        row = above.row[parent]
        own = self.own[feature] * torch.randn(len(feature), generator=generator)
        gaussian = torch.linalg.vecdot(shared[row], self.loadings[feature]) + own

        value = self.mean[feature] + self.deviation[feature] * torch.randn(len(feature), generator=generator)
        active = (gaussian > self.threshold[feature]) & (value > 0)
        if self.scale_children:
            value = value * above.value[parent] / self.mean[above.feature[parent]]

        # Of the children that exclude each other, one wins.
        children, parent = Entries(row, feature, value).where(active), parent[active]
        wins = winners(parent, len(above.row), generator)
        return children.where(wins | ~self.trees.exclusive[above.feature[parent]])

    def rows(self, activations: Codes) -> Tensor:
        """Return the rows (row, width) of true ``activations``: their directions, summed, and the bias."""
        return decode(activations.values, self.directions, activations.pattern) + self.bias


def draw(config: Config, generator: torch.Generator) -> Truth:
    """Draw the true features that ``config`` describes."""
    # A training draws its first directions in the same way. With the same seed it would begin at the truth, so the
    # numbers come from a generator of their own.
    seed = int(torch.randint(2**62, (), generator=generator))
    generator = torch.Generator().manual_seed(seed)

    features = config.features
    directions = normalize(torch.randn(features, config.width, generator=generator), dim=1)
    directions = orthogonalised(directions, config.orthogonal_steps, config.orthogonal_rate)
    bias = config.bias * normalize(torch.randn(config.width, generator=generator), dim=0)

    trees = forest(features, config.roots, config.children, config.depth, config.exclusive, generator)
    probability = zipf(features, config.exponent, config.most, config.least)
    if config.compensate:
        probability = (probability * trees.compensation(probability)).clamp(max=1)

    deviation = config.spread_mean + config.spread_deviation * torch.randn(features, generator=generator)
    return Truth(
        directions=directions,
        probability=probability,
        mean=torch.linspace(config.magnitude_first, config.magnitude_last, features),
        deviation=deviation.abs(),
        loadings=capped(config.correlation * torch.randn(features, config.rank, generator=generator)),
        trees=trees,
        bias=bias,
        scale_children=config.scale_children,
    )


def zipf(features: int, exponent: float, most: float, least: float) -> Tensor:
    """Return probabilities (feature,) that fall from ``most`` to ``least`` as 1 / i^``exponent`` does, i from 1."""
    power = torch.arange(1, features + 1, dtype=torch.float32) ** -exponent
    if float(power[0]) == float(power[-1]):  # a single feature, or an exponent of 0
        return torch.full((features,), most)
    return least + (most - least) * (power - power[-1]) / (power[0] - power[-1])


def capped(loadings: Tensor) -> Tensor:
    """Shorten each of the ``loadings`` (feature, rank) that would leave its feature less than FREE of its variance."""
    squares = loadings.square().sum(1, keepdim=True)
    return torch.where(1 - squares < FREE, loadings * ((1 - FREE) / squares).sqrt(), loadings)


def orthogonalised(directions: Tensor, steps: int, rate: float) -> Tensor:
    """Turn ``directions`` (feature, width) away from each other by ``steps`` steps of Adam; return them at norm 1.

    The loss is Σ_{i≠j} (d_i · d_j)² + n Σ_i (d_i · d_i - 1)² for n features. With G = D Dᵀ, its gradient is
    4 (G - diag G) D + 4 n diag(G - 1) D. Memory holds CHUNK rows of G.
    """
    moving = directions.clone()
    mean, square = torch.zeros_like(moving), torch.zeros_like(moving)
    for step in range(1, steps + 1):
        gradient = torch.empty_like(moving)
        for start in range(0, len(moving), CHUNK):
            part = moving[start : start + CHUNK]
            dots = part @ moving.T
            norms = dots.diagonal(start).clone()  # squared lengths
            dots.diagonal(start).copy_(len(moving) * (norms - 1))
            gradient[start : start + CHUNK] = 4 * dots @ moving

        mean.lerp_(gradient, 1 - BETA1)
        square.lerp_(gradient.square(), 1 - BETA2)
        root = (square / (1 - BETA2**step)).sqrt() + EPS
        moving -= rate / (1 - BETA1**step) * mean / root
    return normalize(moving, dim=1)
