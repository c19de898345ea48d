"""A latent is compared with others that fire as often."""

import numpy as np

from strata.measure.matched import exchanged, matched


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_nearest_by_ratio_by_hand():
    """0.02 is nearer to 0.01 than to 0.05 by ratio; latent 3 is dead; nobody is their own partner."""
    frequency = np.array([0.01, 0.02, 0.05, 0.0, 0.5])
    assert matched(frequency, [1], random()).tolist() == [0]
    assert matched(frequency, [4], random()).tolist() == [2]
    assert matched(frequency, [0, 4], random()).tolist() == [1, 2]


def test_none_is_drawn_twice_and_none_that_was_given():
    frequency = random().random(200) * (random(1).random(200) > 0.2)
    given = random(2).permutation(np.flatnonzero(frequency))[:40]
    for seed in range(5):
        partners = matched(frequency, given, random(seed))
        assert len(set(partners.tolist())) == 40 and not set(partners.tolist()) & set(given.tolist())
        assert (frequency[partners] > 0).all()
        assert np.abs(np.log(frequency[partners] / frequency[given])).mean() < 0.3
    assert matched(frequency, given, random(1)).tolist() == matched(frequency, given, random(1)).tolist()


def test_equally_near_ones_are_as_likely():
    drawn = [int(matched(np.full(5, 0.1), [2], random(seed))[0]) for seed in range(400)]
    assert set(drawn) == {0, 1, 3, 4} and min(drawn.count(latent) for latent in (0, 1, 3, 4)) > 70


def test_where_none_is_left():
    assert sorted(matched(np.array([0.1, 0.2, 0.3]), [0, 1], random()).tolist()) == [-1, 2]
    assert matched(np.array([0.0, 0.2, 0.1]), [0], random()).tolist() == [2], "a dead one gets the rarest"
    assert matched(np.array([0.1]), [0], random()).tolist() == [-1]


def test_places_are_exchanged_with_neighbours():
    frequency = np.array([0.5, 0.1, 0.4, 0.2, 0.11])
    image = exchanged(frequency, random())
    assert (image[1], image[4]) == (4, 1) and set(image[[0, 2, 3]].tolist()) == {0, 2, 3}
    for count in (0, 2, 3, 8, 41):
        image = exchanged(random(count).random(count), random())
        assert sorted(image.tolist()) == list(range(count)) and (image != np.arange(count)).all()
    frequency = random().random(1000)
    assert np.abs(frequency[exchanged(frequency, random())] - frequency).max() < 0.02
