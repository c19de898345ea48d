"""Rows with known features: what may be active together, how often, and how an SAE is scored against them."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import multivariate_normal
from test_train import TARGETS, knobs
from torch import Tensor

from strata.run.door import BadInput
from strata.sae.engine.pattern import pattern_of
from strata.sae.sae import SAE, Codes
from strata.synthetic import truth as truths
from strata.synthetic.config import Config
from strata.synthetic.forest import NO_PARENT, Forest, forest, winners
from strata.synthetic.rows import Drawn, Labelled, drawn, part
from strata.synthetic.scores import cosines, mcc, of_sae, scores, uniqueness
from strata.synthetic.truth import Truth, draw
from strata.training import training
from strata.training.autoencoder import Autoencoder

SMALL = Config(features=60, width=24, roots=2, children=3, depth=2, orthogonal_steps=5, most=0.5, least=0.05)
ORTHONORMAL = Config(
    features=12, width=16, roots=1, children=2, depth=2, orthogonal_steps=0, spread_mean=0.0, spread_deviation=0.0,
    most=0.5, least=0.2,
)  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal() -> Truth:
    """Twelve features with orthonormal directions and no spread, which an SAE can recover whole."""
    truth = draw(ORTHONORMAL, generator())
    return replace(truth, directions=torch.linalg.qr(truth.directions.T).Q.T.contiguous())


def dictionary(directions: Tensor, bias: Tensor, threshold: float = 1e-3) -> SAE:
    """The SAE that reads and writes ``directions``, which are orthonormal."""
    zero = torch.zeros(len(directions))
    return SAE(directions, zero, directions, bias, threshold=zero + threshold)


def sampled(config: Config, rows: int = 20_000, seed: int = 1) -> tuple[Truth, Tensor]:
    truth = draw(config, generator())
    return truth, truth.sample(rows, generator(seed)).dense()


# --- the scores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [torch.arange(12), torch.randperm(12, generator=generator(3))])
def test_the_truth_itself_scores_1(order: Tensor):
    truth = orthonormal()
    blocks = drawn(truth, 1, 1, 4000, seed=5).labelled(2, 4002)
    found = of_sae(dictionary(truth.directions[order], truth.bias), truth.directions, blocks)
    assert (found.f1, found.precision, found.recall, found.uniqueness, found.dead) == (1, 1, 1, 1, 0)
    assert found.mcc == pytest.approx(1, abs=1e-6)
    assert found.l0 == found.true_l0 == found.reachable_l0 and found.l0_error == 0
    assert found.fvu is not None and found.fvu < 1e-9


def test_signs_and_lengths_of_decoder_rows_do_not_count():
    truth = draw(SMALL, generator())
    factors = torch.linspace(-3, 3, 60)[:, None]
    similarity = cosines(truth.directions * factors, truth.directions)
    assert mcc(similarity) == pytest.approx(1, abs=1e-6) and uniqueness(similarity) == 1


def test_random_directions_score_as_chance():
    """The matched |cosine| of two sets of random directions, and one that stays below what a trained SAE reaches."""
    truth = draw(Config(features=256, width=64, orthogonal_steps=0), generator())
    random = torch.nn.functional.normalize(torch.randn(256, 64, generator=generator(7)), dim=1)
    again = torch.nn.functional.normalize(torch.randn(256, 64, generator=generator(8)), dim=1)
    chance = mcc(cosines(again, random))
    assert mcc(cosines(random, truth.directions)) == pytest.approx(chance, abs=0.01)
    assert chance < 0.4
    sae = dictionary(random, truth.bias, threshold=2.0)
    assert of_sae(sae, truth.directions, drawn(truth, 1, 1, 3000, 0).labelled(2, 3002)).f1 < 0.2


def test_a_training_with_the_same_seed_does_not_begin_at_the_truth():
    """Its first directions are drawn with the seed, too: they must be as far away as those of another seed."""
    truth = draw(Config(features=256, width=64, orthogonal_steps=0), generator(5))
    begun = [mcc(cosines(Autoencoder(64, 128, generator(seed)).decoder.detach(), truth.directions)) for seed in (5, 6)]
    assert begun[0] == pytest.approx(begun[1], abs=0.02) and begun[0] < 0.5


def test_scores_by_hand():
    """Three features e1, e2, e3 and two latents, which write e1 and e1 + e2 / 2, over four rows.

    Both stand for e1, which is active on rows 0 and 1. Latent 0 is active on rows 0 and 2: precision 1/2, recall 1/2,
    F1 1/2. Latent 1 on all four: precision 1/2, recall 1, F1 2/3.
    """
    directions = torch.eye(3)
    decoder = torch.tensor([[1.0, 0, 0], [1, 0.5, 0]])
    active = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]])
    codes = torch.tensor([[1.0, 1], [0, 1], [1, 1], [0, 1]])
    found = scores(decoder, lambda x: (codes, x * 0.5), directions, [label(active)])
    assert (found.precision, found.recall, found.uniqueness, found.dead) == (0.5, 0.75, 0.5, 0)
    assert found.f1 == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-12)
    assert found.mcc == pytest.approx((1 + 0.5 / 1.25**0.5) / 2, abs=1e-6)  # latent 1 is matched with e2
    assert (found.l0, found.true_l0, found.reachable_l0) == (6 / 4, 5 / 4, 4 / 4)
    assert found.l0_error == 0.5
    assert found.fvu == pytest.approx((5 / 4) / (5 - 9 / 4), abs=1e-6)  # Σ‖x/2‖² = 5/4; Σ‖x‖² - ‖Σx‖²/4 = 5 - 9/4


def label(active: Tensor) -> Labelled:
    pattern = pattern_of(active > 0)
    return Labelled(active.clone(), Codes(active[active > 0], pattern))


def test_what_never_fires_scores_0():
    active = torch.tensor([[1.0, 0], [1, 0]])
    codes = torch.tensor([[0.0, 1], [0, 1]])  # latent 0 is dead; latent 1 stands for a feature that never fires
    found = scores(torch.eye(2), lambda x: (codes, x), torch.eye(2), [label(active)])
    assert (found.f1, found.precision, found.recall, found.dead) == (0, 0, 0, 0.5)


# --- the hierarchy ------------------------------------------------------------------------------------------------


def test_trees_are_numbered_breadth_first():
    trees = forest(features=12, roots=2, children=2, depth=2, exclusive=0.5, generator=generator())
    assert trees.parent.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # 5 has no children: no feature is left
    assert int(trees.exclusive.sum()) == 2  # half of 0, 1, 2, 3, 4, rounded down
    children, entry = trees.below(torch.tensor([1, 5, 0, 1]))
    assert children.tolist() == [4, 5, 2, 3, 4, 5] and entry.tolist() == [0, 0, 2, 2, 3, 3]


def test_a_child_never_fires_without_its_parent_and_exclusive_siblings_never_together():
    truth, activations = sampled(SMALL)
    active = activations > 0
    together = 0
    for child, parent in enumerate(truth.trees.parent.tolist()):
        if parent != NO_PARENT:
            assert active[:, child].any() and not (active[:, child] & ~active[:, parent]).any()
    for parent in truth.trees.exclusive.nonzero().flatten().tolist():
        siblings = active[:, truth.trees.parent == parent]
        assert siblings.sum(1).max() == 1
        together += 1
    assert together == 8  # 2 roots and their 6 children

    free, activations = sampled(replace(SMALL, exclusive=0.0))
    assert (activations[:, free.trees.parent == 0] > 0).sum(1).max() > 1  # without exclusion they do meet


def test_each_sibling_wins_equally_often():
    family = torch.arange(3).repeat_interleave(2000).repeat(2)[torch.randperm(12_000, generator=generator())] % 3
    family = torch.cat([family, torch.tensor([5, 5, 5])])  # 3 and 4 have no member
    wins = winners(family, 6, generator(1))
    assert [int(wins[family == number].sum()) for number in range(6)] == [1, 1, 1, 0, 0, 1]

    pairs = torch.arange(20_000).repeat_interleave(2)
    assert float(winners(pairs, 20_000, generator(2))[::2].float().mean()) == pytest.approx(0.5, abs=0.02)


def test_a_child_is_scaled_by_its_parent():
    still = replace(SMALL, spread_mean=0.0, spread_deviation=0.0)
    truth, activations = sampled(still)
    truth = replace(truth, deviation=truth.deviation.index_fill(0, torch.tensor([0]), 0.5))  # root 0 alone varies
    activations = truth.sample(2000, generator()).dense()
    child = int((truth.trees.parent == 0).nonzero()[0])
    rows = activations[:, child] > 0
    expected = truth.mean[child] * activations[rows, 0] / truth.mean[0]
    assert torch.allclose(activations[rows, child], expected) and rows.any() and expected.std() > 0.1

    fixed = replace(truth, scale_children=False).sample(2000, generator()).dense()[:, child]
    assert torch.equal(fixed[fixed > 0].unique(), truth.mean[child][None])


def test_compensation_by_hand():
    """0 has the children 1 and 2, which exclude each other, and 1 has the child 3; 4 is free."""
    trees = Forest(torch.tensor([-1, 0, 0, 1, -1]), torch.tensor([True, False, False, False, False]))
    probability = torch.tensor([0.5, 0.2, 0.1, 0.05, 0.3])
    expected = [1, 2 * (1 + 0.1 / 0.5), 2 * (1 + 0.2 / 0.5), 5, 1]
    assert trees.compensation(probability).tolist() == pytest.approx(expected, rel=1e-6)


def test_compensation_brings_rates_near_the_probabilities():
    config = replace(SMALL, most=0.2, least=0.02, rank=0)
    wanted = truths.zipf(60, 0.5, 0.2, 0.02)
    rates = [(sampled(replace(config, compensate=on))[1] > 0).float().mean(0) for on in (True, False)]
    error = [float((rate - wanted).abs().mean()) for rate in rates]
    assert error[0] < 0.6 * error[1]


# --- firing -------------------------------------------------------------------------------------------------------


def test_zipf_by_hand():
    assert truths.zipf(3, 1.0, 0.4, 0.1).tolist() == pytest.approx([0.4, 0.1 + 0.3 * (1 / 6) / (2 / 3), 0.1])
    assert truths.zipf(2, 0.0, 0.4, 0.1).tolist() == pytest.approx([0.4, 0.4])


def test_features_fire_as_often_as_they_should_and_together_as_the_copula_says():
    rows = 40_000
    loadings = torch.tensor([[0.8, 0.0], [0.6, 0.0], [-0.5, 0.3], [0.0, 0.0]])
    truth = draw(Config(features=4, width=8, roots=0, rank=2), generator())
    truth = replace(truth, loadings=loadings, probability=torch.tensor([0.3, 0.1, 0.2, 1.0]))
    active = (truth.sample(rows, generator(4)).dense() > 0).double()
    for feature, expected in enumerate([0.3, 0.1, 0.2, 1.0]):
        assert float(active[:, feature].mean()) == pytest.approx(expected, abs=4 * (expected / rows) ** 0.5)

    correlation = loadings @ loadings.T
    for i, j in ((0, 1), (0, 2), (1, 2)):
        covariance = [[1, float(correlation[i, j])], [float(correlation[i, j]), 1]]
        above = -truth.threshold[[i, j]]  # P(g_i > t_i, g_j > t_j) = P(g_i < -t_i, g_j < -t_j)
        expected = float(multivariate_normal([0, 0], covariance).cdf(above.numpy()))  # pyright: ignore
        assert float((active[:, i] * active[:, j]).mean()) == pytest.approx(expected, abs=4 * (expected / rows) ** 0.5)
    assert float((active[:, 0] * active[:, 2]).mean()) < 0.3 * 0.2  # the control: independent features meet more often


def test_loadings_leave_each_feature_a_part_of_its_own():
    loadings = truths.capped(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    assert loadings.square().sum(1).tolist() == pytest.approx([0.99, 0.25])


def test_orthogonalisation_is_adam_on_the_published_loss(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(truths, "CHUNK", 5)  # 13 directions in three chunks
    start = torch.nn.functional.normalize(torch.randn(13, 6, generator=generator()), dim=1)
    moving = start.clone().requires_grad_()
    adam = torch.optim.Adam([moving], lr=0.01)
    for _ in range(4):
        dots = moving @ moving.T
        off = dots - torch.diag(dots.diagonal())
        loss = off.square().sum() + 13 * (dots.diagonal() - 1).square().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    expected = torch.nn.functional.normalize(moving.detach(), dim=1)
    found = truths.orthogonalised(start, 4, 0.01)
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, start, atol=1e-2)


# --- rows ---------------------------------------------------------------------------------------------------------


def test_rows_are_directions_summed():
    truth = draw(SMALL, generator())
    activations = truth.sample(50, generator(1))
    assert torch.allclose(truth.rows(activations), activations.dense() @ truth.directions + truth.bias, atol=1e-5)


def test_rows_are_the_same_bytes_however_they_are_read():
    rows = drawn(draw(SMALL, generator()), 700, 100, 200, seed=3)
    whole = rows.read(0, 1000)
    assert torch.equal(torch.cat([rows.read(start, min(start + 33, 1000)) for start in range(0, 1000, 33)]), whole)
    assert torch.equal(torch.cat(list(rows.blocks(0, 1000, rows=300))), whole)
    assert torch.equal(rows.kept().x, whole)
    again = drawn(draw(SMALL, generator()), 700, 100, 200, seed=3)
    assert torch.equal(again.read(0, 1000), whole)
    assert not torch.equal(replace(rows, seed=4).read(0, 1000), whole)
    assert not torch.equal(whole[:256], whole[256:512])  # chunks differ

    labels = list(rows.labelled(250, 270))
    x, activations = torch.cat([block.x for block in labels]), torch.cat([b.activations.dense() for b in labels])
    assert torch.equal(x, whole[250:270])
    assert torch.allclose(activations @ rows.truth.directions + rows.truth.bias, x, atol=1e-5)


def test_a_part_of_codes():
    dense = torch.tensor([[0.0, 1], [2, 3], [0, 0], [4, 0]])
    codes = Codes(dense[dense > 0], pattern_of(dense > 0))
    assert torch.equal(part(codes, 1, 4).dense(), dense[1:4])


def test_training_finds_the_features():
    """By way of the protocol Rows, without a copy of the rows; an untrained dictionary is the control."""
    free = Forest(torch.full((12,), NO_PARENT), torch.zeros(12, dtype=torch.bool))
    truth = replace(orthonormal(), trees=free, probability=torch.full((12,), 0.25))
    rows: Drawn = drawn(truth, 8192, 512, 2048, seed=0)
    settings = knobs(
        rule="batchtopk", latents=12, k=3, batch_size=256, epochs=3, lr=0.01, auxk_latents=4, dead_after=0.2
    )
    fitted = training.train(rows, settings, TARGETS, 0)
    found, control = (
        of_sae(sae, rows.truth.directions, rows.labelled(*rows.split("test")))
        for sae in (fitted.best, fitted.untrained)
    )
    assert found.mcc > 0.9 > control.mcc + 0.05
    assert found.f1 > 0.8 > control.f1 + 0.2
    assert fitted.best.width == rows.width


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": 0}, "features is 0; it must be a whole number of at least 1"),
        ({"children": 1}, "children is 1; it must be a whole number of at least 2"),
        ({"least": 0.0}, "0 < least <= most <= 1"),
        ({"most": 1.5}, "0 < least <= most <= 1"),
        ({"exclusive": 1.1}, "exclusive is 1.1; it is a share of the parents"),
        ({"correlation": -1.0}, "correlation is -1.0; it must be at least 0"),
        ({"bias": float("nan")}, "bias is nan; it must be a finite number"),
        ({"magnitude_last": 0.0}, "scale_children divides by a parent's mean"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, float], message: str):
    with pytest.raises(BadInput, match=message):
        replace(SMALL, **change)


def test_a_split_needs_rows():
    with pytest.raises(BadInput, match="validation is 0; each split needs at least one row"):
        drawn(draw(SMALL, generator()), 10, 0, 10, seed=0)
