"""The hierarchy of true features: a child is active only where its parent is, and siblings may exclude each other."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NO_PARENT = -1
LOTS = 2**32  # different lots that a child may draw


@dataclass(frozen=True)
class Forest:
    """Trees of features.

    ``parent``: (feature,) int64, NO_PARENT for a root and for a feature of no tree. ``exclusive``: (feature,) bool,
    whether the children of this feature exclude each other.
    """

    parent: Tensor
    exclusive: Tensor

    @property
    def features(self) -> int:
        return len(self.parent)

    @cached_property
    def tops(self) -> Tensor:
        """(top,) the features without a parent: roots, and features of no tree."""
        return (self.parent < 0).nonzero().flatten()

    @cached_property
    def counts(self) -> Tensor:
        """(feature,) the number of children."""
        return torch.bincount(self.parent[self.parent >= 0], minlength=self.features)

    @cached_property
    def _by_parent(self) -> tuple[Tensor, Tensor]:
        """All children, (child,), those of one parent together; and the place of each feature's first, (feature,)."""
        children = self.parent.argsort(stable=True)[len(self.tops) :]
        return children, self.counts.cumsum(0) - self.counts

    def below(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the children of ``features`` (entry,), one entry's after another's, (child,).

        And for each child the number of its entry, (child,).
        """
        counts = self.counts[features]
        entry = torch.repeat_interleave(torch.arange(len(features)), counts)
        children, first = self._by_parent
        place = torch.arange(len(entry)) - (counts.cumsum(0) - counts)[entry]  # among its siblings
        return children[first[features[entry]] + place], entry

    def compensation(self, probability: Tensor) -> Tensor:
        """Return by what each ``probability`` (feature,) is multiplied, so that the tree takes about nothing from it.

        Given its parent of probability P, a child must fire 1 / P times as often, and again 1 + Σ_j p_j / P times if
        it excludes siblings j, which may win in its place. The second factor is a bound of first order, as published.
        """
        child = self.parent >= 0
        above = probability[self.parent.clamp(min=0)]  # (feature,) the parent's
        factor = torch.where(child, 1 / above, 1.0)

        children = torch.where(child, probability, 0.0)
        total = torch.zeros_like(probability).index_add(0, self.parent.clamp(min=0), children)
        siblings = total[self.parent.clamp(min=0)] - probability
        competes = child & self.exclusive[self.parent.clamp(min=0)]
        return torch.where(competes, factor * (1 + siblings.clamp(min=0) / above), factor)


def forest(
    features: int, roots: int, children: int, depth: int, exclusive: float, generator: torch.Generator
) -> Forest:
    """Number the features of ``roots`` trees breadth first, each with ``children`` children down to ``depth``.

    The features that are left over belong to no tree. Of the parents with at least two children, the share
    ``exclusive``, drawn at random, has children that exclude each other.
    """
    parent = torch.full((features,), NO_PARENT)
    level = torch.arange(min(roots, features))
    after = len(level)  # the first feature without a place
    for _ in range(depth):
        owners = level.repeat_interleave(children)[: features - after]
        parent[after : after + len(owners)] = owners
        level = torch.arange(after, after + len(owners))
        after += len(owners)

    counts = torch.bincount(parent[parent >= 0], minlength=features)
    eligible = (counts >= 2).nonzero().flatten()
    drawn = eligible[torch.randperm(len(eligible), generator=generator)[: int(exclusive * len(eligible))]]
    return Forest(parent, torch.zeros(features, dtype=torch.bool).index_fill(0, drawn, True))


def winners(family: Tensor, families: int, generator: torch.Generator) -> Tensor:
    """Draw one member of each family; return whether a member was drawn, (member,). ``family``: (member,) numbers."""
    # Every member draws a lot of its own, no two alike; the highest one wins.
    lots = torch.randint(LOTS, family.shape, generator=generator) * len(family) + torch.arange(len(family))
    best = torch.full((families,), -1).scatter_reduce_(0, family, lots, "amax")
    return lots == best[family]
