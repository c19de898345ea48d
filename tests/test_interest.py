"""The interest of a latent, by hand."""

import numpy as np
import pytest

from strata.interpretation.explanations import Explanation
from strata.interpretation.interest import interest, told


def rule(latent: int, value: float | None, chance: float | None = 0.5) -> Explanation:
    one = Explanation(latent, "rule", "x")
    one.scores |= {"balanced_accuracy": value, "balanced_accuracy_chance": chance}
    return one


def of(density: float, share: float, background: float, value: float | None = 1.0, documents: int = 996) -> float:
    """The interest of one kept latent whose first token has this ``share`` of its firing."""
    statistics = {"density": np.array([density]), "documents": np.array([documents]), "kept": np.array([True])}
    first = np.array([0]), np.array([share]), np.array([background])
    return float(interest(statistics, [rule(0, value)], *first)[0]) * (documents + 4) / documents


def test_a_rare_latent_of_many_words_is_the_most_interesting():
    assert of(0.001, 0.0, 1e-5) == pytest.approx(1)
    assert of(0.005, 0.2, 1e-5) == pytest.approx(1 - 0.2 / 2)
    assert of(0.001, 1.0, 1e-5) == pytest.approx(0.5), "a single rare word"
    assert of(0.001, 1.0, 1e-2) == of(0.001, 1.0, 0.05) == pytest.approx(0), "a single common one"
    assert of(0.001, 1.0, 10**-3.5) == pytest.approx(0.25), "half way between, on a scale of logarithms"


def test_a_dense_latent_and_one_that_nothing_tells_are_not():
    assert of(0.1, 0.0, 1e-5) == of(0.6, 0.0, 1e-5) == 0
    assert of((0.1 * 0.005) ** 0.5, 0.0, 1e-5) == pytest.approx(0.5)
    assert of(0.001, 0.0, 1e-5, value=0.5) == of(0.001, 0.0, 1e-5, value=None) == of(0.001, 0.0, 1e-5, value=0.4) == 0
    assert of(0.001, 0.0, 1e-5, value=0.75) == pytest.approx(0.5)
    assert of(0.001, 0.0, 1e-5, documents=4) == pytest.approx(1), "apart from n / (n + 4)"


def test_the_best_explanation_counts_and_its_own_chance():
    found = [rule(0, 0.7), rule(0, 0.9), rule(2, 0.9, 0.8), rule(2, None), rule(1, 0.3, None)]
    assert told(found, 4) == pytest.approx([0.8, 0, 0.2, 0])


def test_dead_and_dropped_ones_have_none():
    statistics = {
        "density": np.array([0.0, 0.001, 0.001]),
        "documents": np.array([0, 4, 4]),
        "kept": np.array([False, False, True]),
    }
    first = np.array([1]), np.array([1.0]), np.array([1e-6])
    assert interest(statistics, [rule(1, 1.0), rule(2, 1.0)], *first).tolist() == [0, 0, 0.5]
