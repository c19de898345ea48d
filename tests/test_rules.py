"""Sparsity rules: exact selection, and gradients and penalties by hand."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from strata.formats.conventions import l1_coefficient
from strata.sae.engine.pattern import Pattern, pattern_of
from strata.sae.engine.preactivations import Preactivations
from strata.training.autoencoder import Autoencoder, Scale, fold
from strata.training.rules.base import Pass, Rule
from strata.training.rules.errors import outputs
from strata.training.rules.jumprelu import JumpReLU, Reward
from strata.training.rules.relu import Gated, ReLU
from strata.training.rules.topk import BatchTopK, Matryoshka, TopK

NOW = torch.Generator().manual_seed(0)


def tiny(width: int, latents: int) -> Autoencoder:
    model = Autoencoder(width, latents, torch.Generator().manual_seed(0))
    model.b_enc.data = 0.1 * torch.randn(latents, generator=torch.Generator().manual_seed(5))
    return model


def given(h: torch.Tensor) -> Preactivations:
    """Pre-activations that are ``h``, (row, latent): the encoder is the identity."""
    latents = h.shape[1]
    return Preactivations(h, torch.eye(latents), torch.zeros(latents), torch.ones(latents))


def a_pass(pattern: Pattern, h: torch.Tensor, codes: torch.Tensor, y: torch.Tensor, output: torch.Tensor) -> Pass:
    return Pass(y, pattern, h, codes, (y - output).square().sum(), y - output)


def test_topk_takes_the_k_largest_of_each_row():
    pattern, values = TopK(2).select(given(torch.tensor([[1.0, 5.0, 3.0], [0.1, 0.05, -2.0], [0.5, 0.5, 0.5]])))
    assert values.tolist() == pytest.approx([5, 3, 0.1, 0.05, 0.5, 0.5])  # in the order of the latents
    assert pattern.dense(torch.ones(6)).tolist() == [[0, 1, 1], [1, 1, 0], [1, 1, 0]]  # of equals, the first
    pattern, values = TopK(2).select(given(torch.tensor([[-1.0, 5.0, -3.0]])))
    assert pattern.latents.tolist() == [1]  # negative ones would be cut off: they do not take part


def test_batchtopk_takes_the_first_of_equals_whatever_its_guess():
    h = torch.tensor([[1.0, 2.0, 1.0], [1.0, 0.5, 3.0]])
    for guess in (0.0, 0.4, 0.9, 1.0, 7.0):
        rule = BatchTopK(2)
        rule.guess.fill_(guess)
        assert rule.select(given(h))[0].dense(torch.ones(4)).tolist() == [[1, 1, 1], [0, 0, 1]]
        assert float(rule.guess) == 1


def test_batchtopk_is_exact_whatever_its_guess():
    generator = torch.Generator().manual_seed(0)
    rule = BatchTopK(3)
    for scale in (1.0, 1.05, 0.2, 5.0):  # the guess from one batch is too low, too high, far off for the next
        h = scale * torch.randn(50, 40, generator=generator)
        h[7] += 3 * scale  # one row takes more than its share
        chosen, values = rule.select(given(h))
        assert len(chosen.latents) == 150
        assert values.sort().values.equal(h.flatten().topk(150).values.sort().values)
        assert int(chosen.starts.diff().max()) > 3


def test_batchtopk_with_too_few_positive_entries_takes_what_there_is():
    h = -torch.ones(4, 5)
    h[0, 1] = 2.0
    assert BatchTopK(2).select(given(h))[0].latents.tolist() == [1]


@pytest.mark.parametrize("rule", [TopK(32), BatchTopK(32)])
def test_k_may_be_the_whole_dictionary(rule: Rule):
    model, y = tiny(8, 32), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    rule.start(model, y)
    run = model(y, rule, NOW)
    assert len(run.h) == int((y @ model.encoder.T + model.b_enc > 0).sum())  # what is not positive takes no part


def test_jumprelu_surrogate_gradients_by_hand():
    """θ = 1, ε = 0.5: the window is (0.75, 1.25). ∂z/∂θ = −θ/ε = −2 and ∂l0/∂θ = −1/ε = −2 inside, 0 outside."""
    rule = JumpReLU(k=1, latents=4, bandwidth=0.5, coefficient=1.0)
    rule.threshold.data.fill_(1.0)
    h = torch.tensor([0.5, 0.9, 1.1, 3.0], requires_grad=True)
    pattern = pattern_of(torch.ones(1, 4, dtype=torch.bool))
    z = rule.codes(h, pattern, NOW)
    assert z.tolist() == pytest.approx([0, 0, 1.1, 3.0])
    to_h, to_threshold = torch.autograd.grad(z.sum(), [h, rule.threshold])
    assert to_h.tolist() == [0, 0, 1, 1]
    assert to_threshold.tolist() == [0, -2, -2, 0]
    # two of four are active and one is wanted: penalty (2/1 − 1)² = 1, its derivative by l0 is 2
    penalty = rule.penalty(tiny(1, 4), a_pass(pattern, h, z, torch.zeros(1, 1), torch.zeros(1, 1)), 1.0)
    assert penalty.item() == 1.0
    assert torch.autograd.grad(penalty, rule.threshold)[0].tolist() == [0, -4, -4, 0]


def test_jumprelu_starts_with_k_active_latents_a_row_and_selects_its_window():
    model, y = tiny(8, 32), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    h = y @ model.encoder.T + model.b_enc
    rule = JumpReLU(k=4, latents=32, bandwidth=0.1, coefficient=1.0)
    rule.start(model, y)
    active = (h > rule.threshold).sum() / 64
    assert float(active) == pytest.approx(4, abs=0.02)
    pattern, values = rule.select(Preactivations(y, model.encoder, model.b_enc, model.balance))
    chosen = pattern.dense(torch.ones(len(values))).bool()
    assert bool((chosen == (h > rule.threshold - 0.05)).all())


def test_relu_starts_with_k_active_latents_and_its_penalty_rises():
    model, y = tiny(8, 32), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    rule = ReLU(k=4, coefficient=0.5, warmup=0.2, delay=0.1)
    rule.start(model, y)
    h = y @ model.encoder.T + model.b_enc
    pattern, _ = rule.select(Preactivations(y, model.encoder, model.b_enc, model.balance))
    assert len(pattern.latents) == pytest.approx(4 * 64, abs=2)
    strengths = []
    for done in (0.0, 0.1, 0.2, 0.3, 1.0):
        rule.schedule(done)
        strengths.append(rule.strength)
    assert strengths == pytest.approx([0, 0, 0.25, 0.5, 0.5])
    values = h[pattern.row_of, pattern.latents]
    run = a_pass(pattern, values, values.relu(), y, y)
    assert rule.penalty(model, run, 10.0).item() == pytest.approx(0.5 * h.relu().sum().item() / 10, rel=1e-5)


def test_kl_penalty_by_hand():
    """Two latents, k = 1: ρ = 1/2. Mean codes 1/4 and 1/2: KL = ½ ln 2 + ½ ln ⅔ and 0, times two rows."""
    rule = ReLU(k=1, coefficient=1.0, warmup=0.0, delay=0.0, kl=True)
    rule.schedule(1.0)
    pattern, y = pattern_of(torch.tensor([[True, True], [False, True]])), torch.zeros(2, 2)
    h = torch.tensor([0.5, 0.4, 0.6], requires_grad=True)
    found = rule.penalty(tiny(2, 2), a_pass(pattern, h, h, y, y), 1.0)
    assert isinstance(found, torch.Tensor)
    assert found.item() == pytest.approx(math.log(2) + math.log(2 / 3))
    # ∂/∂ρ̂ = −ρ/ρ̂ + (1−ρ)/(1−ρ̂) = −2 + 2/3, and a code moves ρ̂ by a half: two rows cancel it
    assert torch.autograd.grad(found, h)[0].tolist() == pytest.approx([-4 / 3, 0, 0], abs=1e-6)


def test_gated_by_hand():
    """r = ln 2, c = −1: h = 0.4 is open but 2 · 0.4 − 1 < 0; h = 2 gives 3; h = −1 is shut."""
    rule = Gated(k=1, latents=3, coefficient=0.0, warmup=0.0, delay=0.0)
    rule.r.data.fill_(math.log(2))
    rule.c.data.fill_(-1.0)
    pattern = pattern_of(torch.ones(1, 3, dtype=torch.bool))
    h = torch.tensor([0.4, 2.0, -1.0])
    assert rule.codes(h, pattern, NOW).tolist() == pytest.approx([0, 3, 0])


def test_matryoshka_reconstructs_by_every_prefix():
    model, y = tiny(8, 32), torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    rule = Matryoshka(4, [4, 16, 32])
    run = model(y, rule, NOW)
    codes = run.pattern.dense(run.codes)
    found = outputs(run.codes, model.decoder, model.b_dec, run.pattern, rule.ends(32))
    for end, output in zip(rule.ends(32), found, strict=True):
        torch.testing.assert_close(output, codes[:, :end] @ model.decoder[:end] + model.b_dec)
    torch.testing.assert_close(run.error, torch.stack([(y - output).square().sum() for output in found]).mean())
    torch.testing.assert_close(run.residual, y - found[-1])


def test_reward_gradient_is_that_of_the_expectation():
    """Three latents, eight masks: E[R] is a finite sum, and the mean of the estimates is its exact gradient."""
    rule = Reward(k=1, latents=3, bandwidth=0.5, coefficient=0.1, diversity=0.0)
    rule.threshold.data = torch.tensor([0.4, 0.9, 0.5])
    model, h = tiny(2, 3), torch.tensor([0.6, 0.8, 0.3])
    # Decoder rows of any length, as a frozen encoder leaves them.
    model.decoder.data = torch.tensor([[1.0, 0.0], [0.6, 0.9], [-0.5, 1.0]])
    y, pattern = torch.tensor([[1.0, 0.5]]), pattern_of(torch.ones(1, 3, dtype=torch.bool))
    threshold = rule.threshold.detach().clone().requires_grad_()
    p = ((h - threshold) / 0.5).sigmoid()

    estimate, expected, spread = torch.zeros(3), torch.zeros(()), torch.zeros(3)
    for mask in itertools.product((0.0, 1.0), repeat=3):
        m = torch.tensor(mask)
        codes = m * h
        residual = y - codes @ model.decoder
        chance = (p * m + (1 - p) * (1 - m)).prod()
        loss = rule.penalty(model, a_pass(pattern, h, codes, y, y - residual), 2.0)
        (gradient,) = torch.autograd.grad(loss, rule.threshold)
        estimate += chance.detach() * gradient
        spread += chance.detach() * gradient.square()
        expected = expected + chance * (-residual.square().sum() / 2 - 0.1 * m.sum())
    (exact,) = torch.autograd.grad(-expected, threshold)
    torch.testing.assert_close(estimate, exact)

    # The score function R ∇ log π(m), even with the best constant baseline, is spread more widely around the same mean.
    def score(baseline: Tensor) -> Tensor:
        total = torch.zeros(3)
        for mask in itertools.product((0.0, 1.0), repeat=3):
            m = torch.tensor(mask)
            reward = -(y - (m * h) @ model.decoder).square().sum() / 2 - 0.1 * m.sum()
            slope = -(m - p) / 0.5 * (baseline - reward)  # of -(R − b) log π by θ
            total += (p * m + (1 - p) * (1 - m)).prod() * slope.square()
        return total.detach()

    assert (spread < 0.5 * score(expected.detach())).all()


def test_reward_counts_what_a_rare_latent_earns():
    """Two rows: latent 0 is drawn in both, latent 1 in the first. What each adds to the diversity is worked by hand."""
    rule = Reward(k=1, latents=2, bandwidth=0.5, coefficient=0.0, diversity=1.0)
    pattern = pattern_of(torch.ones(2, 2, dtype=torch.bool))
    codes, model = torch.tensor([1.0, 1.0, 1.0, 0.0]), tiny(2, 2)
    y = pattern.dense(codes) @ model.decoder  # nothing is left to explain
    h = torch.tensor([1.0, 1.0, 1.0, 1e-9])
    gain = rule._gain(model, a_pass(pattern, h, codes, y, y), unit=2.0)
    lowered = torch.tensor([1.0, 1.0, 1.0, 0.0])  # 2 a q − a² = a² for the drawn ones, times rows / unit = 1
    rarity = torch.tensor([0.25 - 0.5, 0.25 - 0.0, 0.0, 0.25 - 0.0])  # shares 1 and ½: 1 − share is 0 and ½
    torch.testing.assert_close(gain, lowered + rarity)


@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu", "matryoshka"])
def test_a_folded_rule_is_the_same_function_on_raw_rows(name: str):
    """Reconstruction of the SAE on x = the one of training on s (x − μ), back on the scale of x."""
    model = tiny(8, 32)
    model.b_dec.data = torch.linspace(-1, 1, 8)
    rule = {
        "relu": ReLU(4, 0.1, 0.0, 0.0),
        "gated": Gated(4, 32, 0.1, 0.0, 0.0),
        "jumprelu": JumpReLU(4, 32, 0.1, 1.0),
        "matryoshka": Matryoshka(4, [8, 32]),
    }[name]
    if isinstance(rule, Gated):
        rule.r.data = torch.linspace(-0.5, 0.5, 32)
        rule.c.data = torch.linspace(-0.2, 0.2, 32)
    x = 3 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1)) + 2
    scale = Scale(0.5, torch.full((8,), 1.7), 1.0)
    y = scale.apply(x)
    rule.start(model, y)
    run = model(y, rule, NOW)
    sae = fold(model, rule, scale)
    if isinstance(rule, Matryoshka):  # at rest it has a threshold: the batch's own cut gives the batch's own codes
        values = run.codes.detach()
        sae = fold(model, JumpReLU(4, 32, 0.1, 1.0), scale)
        assert sae.threshold is not None
        sae.threshold.fill_(float(values.min() * 0.9999 / scale.factor))
    output, active = sae.reconstruct(x)
    torch.testing.assert_close(output, (y - run.residual) / scale.factor + scale.mean, rtol=1e-4, atol=1e-4)
    assert int(active.sum()) == int((run.codes > 0).sum())


def test_l1_conventions_by_hand():
    """The loss of the other convention is ours times a constant, on numbers."""
    error, codes = torch.randn(6, 4).square(), torch.randn(6, 10).abs()
    ours = {
        name: error.sum() + l1_coefficient(0.02, name, 6, 4, 10) * codes.sum()
        for name in ("mean", "batch_sum", "token_sum")
    }
    torch.testing.assert_close(ours["mean"] / 24, error.mean() + 0.02 * codes.mean())
    torch.testing.assert_close(ours["batch_sum"] / 24, error.mean() + 0.02 * codes.sum())
    torch.testing.assert_close(ours["token_sum"] / 6, (error.sum(1) + 0.02 * codes.sum(1)).mean())
    assert l1_coefficient(1e-3, "mean", 128, 384, 500) == pytest.approx(7.68e-4)
    assert l1_coefficient(0.1, "batch_sum", 128, 768, 4096) == pytest.approx(9830.4)


def test_the_price_of_held_out_codes_is_what_training_pays_at_full_weight():
    pattern = pattern_of(torch.tensor([[True, False, True], [False, True, False]]))
    h, nothing = torch.tensor([0.5, 2.0, 0.25]), torch.zeros(2, 3)
    for kl in (False, True):
        relu = ReLU(2, 0.5, warmup=0.1, delay=0.0, kl=kl)
        relu.schedule(1.0)
        paid = relu.penalty(tiny(3, 3), a_pass(pattern, h, h, nothing, nothing), 10.0)
        assert relu.price(h, pattern, 10.0) == pytest.approx(float(paid))
    assert relu.price(h, pattern, 10.0) != pytest.approx(0.5 * 2.75 / 10)
    assert Gated(2, 3, 0.5, 0.1, 0.0).price(h, pattern, 10.0) == pytest.approx(0.5 * 2.75 / 10)
    assert Reward(2, 3, 0.1, 0.01, 0.5).price(h, pattern, 10.0) == pytest.approx(0.01 * 1.5)
    assert {rule.price(h, pattern, 10.0) for rule in (TopK(2), BatchTopK(2), JumpReLU(2, 3, 0.1, 0.3))} == {None}
