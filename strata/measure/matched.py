"""Latents that fire as often: the control of what is said of single latents.

How often a latent fires decides much of what it can reach: a probe by one that fires in half of the documents, or a
rule for one that fires on every tenth token, has an easier task. So a latent is compared with others of its density.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def matched(
    frequency: NDArray[np.floating], latents: Sequence[int] | NDArray[np.integer], random: np.random.Generator
) -> NDArray[np.int64]:
    """Draw for each of ``latents`` another living latent that fires nearly as often, (latents,).

    In a random order each gets the one whose frequency is nearest by its logarithm, of those that are left: none is
    drawn twice, and none of ``latents`` is drawn. Of equally near ones each is as likely.

    ``frequency``: (latent,) the share of rows on which each latent of the dictionary fires; 0: it is dead. Where no
    latent is left, the place holds -1.
    """
    latents = np.asarray(latents, np.int64)
    left = np.setdiff1d(np.flatnonzero(frequency > 0), latents)
    left = random.permutation(left)  # argmin takes the first of equally near ones
    with np.errstate(divide="ignore"):
        density = np.log(frequency)

    partners = np.full(len(latents), -1, np.int64)
    for place in random.permutation(len(latents)):
        if not len(left):
            break
        # A dead latent is as far from all others; it gets the rarest one.
        own = density[latents[place]]
        nearest = int(np.argmin(np.abs(density[left] - own) if np.isfinite(own) else density[left]))
        partners[place] = left[nearest]
        left = np.delete(left, nearest)
    return partners


def exchanged(frequency: NDArray[np.floating], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw a permutation of all latents that gives each the place of another one that fires nearly as often, (latent,).

    The latents are sorted by frequency, equal ones in a random order, and neighbours change places; of an odd number,
    the last three take each other's places in turn. A single latent has no other: callers have to leave that case out.
    """
    count = len(frequency)
    order = random.permutation(count)
    order = order[np.argsort(frequency[order], kind="stable")]

    image = np.empty(count, np.int64)
    pairs = count - count % 2 - 2 * (count % 2 and count > 1)  # latents that change places two by two
    for first, second in order[:pairs].reshape(-1, 2):
        image[first], image[second] = second, first
    image[order[pairs:]] = np.roll(order[pairs:], 1)
    return image
