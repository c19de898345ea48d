"""Sparsity rules: exact selection, and jumprelu's surrogate gradients by hand."""

import pytest
import torch

from stages.sae.kernels import pattern_of
from stages.sae.rules import BatchTopK, JumpReLU, TopK, above


def test_topk_takes_the_k_largest_of_each_row():
    pattern = TopK(2).select(torch.tensor([[1.0, 5.0, 3.0], [0.1, -1.0, -2.0]]))
    assert pattern.dense(torch.ones(4)).tolist() == [[0, 1, 1], [1, 1, 0]]
    assert TopK(2).codes(torch.tensor([5.0, 3.0, 0.1, -1.0]), pattern)[-1] == 0  # negative ones are cut off


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batchtopk_is_exact_whatever_its_guess(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    rule = BatchTopK(3)
    for scale in (1.0, 1.05, 0.2, 5.0):  # the guess from one batch is too low, too high, far off for the next
        h = (scale * torch.randn(50, 40, generator=generator)).to(dtype)
        h[7] += 3 * scale  # one row takes more than its share
        chosen = rule.select(h)
        assert len(chosen.latents) == 150
        values = h[chosen.row_of, chosen.latents].float()
        assert values.sort().values.equal(h.flatten().float().topk(150).values.sort().values)
        assert int(chosen.starts.diff().max()) > 3


def test_batchtopk_with_too_few_positive_entries_takes_what_there_is():
    h = -torch.ones(4, 5)
    h[0, 1] = 2.0
    assert BatchTopK(2).select(h).latents.tolist() == [1]


def test_comparing_bits_is_comparing_values():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    for threshold in (0.0, 0.5, 1.7):
        expected = (values > torch.tensor(threshold).bfloat16()).nonzero().flatten()
        assert above(values, threshold).equal(expected)


def test_jumprelu_surrogate_gradients_by_hand():
    """θ = 1, ε = 0.5: the window is (0.75, 1.25). ∂z/∂θ = −θ/ε = −2 and ∂l0/∂θ = −1/ε = −2 inside, 0 outside."""
    rule = JumpReLU(k=1, latents=4, bandwidth=0.5, coefficient=1.0)
    rule.threshold.data.fill_(1.0)
    h = torch.tensor([0.5, 0.9, 1.1, 3.0], requires_grad=True)
    pattern = pattern_of(torch.ones(1, 4, dtype=torch.bool))
    z = rule.codes(h, pattern)
    assert z.tolist() == pytest.approx([0, 0, 1.1, 3.0])
    to_h, to_threshold = torch.autograd.grad(z.sum(), [h, rule.threshold])
    assert to_h.tolist() == [0, 0, 1, 1]
    assert to_threshold.tolist() == [0, -2, -2, 0]
    # two of four are active and one is wanted: penalty (2/1 − 1)² = 1, its derivative by l0 is 2
    penalty = rule.penalty(h, pattern)
    assert penalty.item() == 1.0
    assert torch.autograd.grad(penalty, rule.threshold)[0].tolist() == [0, -4, -4, 0]


def test_jumprelu_starts_with_k_active_latents_a_row_and_selects_its_window():
    h = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    rule = JumpReLU(k=4, latents=32, bandwidth=0.1, coefficient=1.0)
    rule.start(h)
    active = (h > rule.threshold).sum() / 64
    assert float(active) == pytest.approx(4, abs=0.02)
    chosen = rule.select(h).dense(torch.ones(len(rule.select(h).latents))).bool()
    assert bool((chosen == (h > rule.threshold - 0.05)).all())
