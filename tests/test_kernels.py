"""Sparse products and their gradients equal the dense ones."""

import pytest
import torch
from torch import Tensor

from stages.sae.autoencoder import Autoencoder
from stages.sae.kernels import Pattern, decode, pattern_of, sampled
from stages.sae.rules import BatchTopK, JumpReLU, TopK

ROWS, WIDTH, LATENTS = 33, 16, 64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pattern() -> Pattern:
    mask = random(ROWS, LATENTS) > 1.2
    mask[3] = False  # a row without any
    mask[:, 5] = False  # a latent without any
    return pattern_of(mask)


def test_pattern_of_a_mask_by_hand():
    pattern = pattern_of(torch.tensor([[True, False, True], [False, False, False], [False, True, False]]))
    assert pattern.starts.tolist() == [0, 2, 2, 3]
    assert pattern.latents.tolist() == [0, 2, 1]
    assert pattern.row_of.tolist() == [0, 0, 2]
    assert pattern.dense(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1, 0, 2], [0, 0, 0], [0, 3, 0]]
    assert pattern.keep(torch.tensor([False, True, True])).starts.tolist() == [0, 1, 1, 2]


def test_products_equal_dense_ones(pattern: Pattern):
    x, weight, values = random(ROWS, WIDTH), random(LATENTS, WIDTH, seed=1), random(len(pattern.latents), seed=2)
    torch.testing.assert_close(sampled(x, weight, pattern), (x @ weight.T)[pattern.row_of, pattern.latents])
    torch.testing.assert_close(decode(values, weight, pattern), pattern.dense(values) @ weight)


def test_gradients_equal_dense_ones(pattern: Pattern):
    x, weight = random(ROWS, WIDTH).requires_grad_(), random(LATENTS, WIDTH, seed=1).requires_grad_()
    values = random(len(pattern.latents), seed=2).requires_grad_()
    out, back = random(ROWS, WIDTH, seed=3), random(len(pattern.latents), seed=4)

    ours = torch.autograd.grad((sampled(x, weight, pattern) * back).sum(), [x, weight])
    theirs = torch.autograd.grad(((x @ weight.T)[pattern.row_of, pattern.latents] * back).sum(), [x, weight])
    torch.testing.assert_close(ours, theirs)

    ours = torch.autograd.grad((decode(values, weight, pattern) * out).sum(), [values, weight])
    theirs = torch.autograd.grad((pattern.dense(values) @ weight * out).sum(), [values, weight])
    torch.testing.assert_close(ours, theirs)


def dense_codes(h: Tensor, rule: TopK | JumpReLU) -> Tensor:
    """The rule's equation on a dense h, gradients by autograd alone (for jumprelu: those to h)."""
    if isinstance(rule, JumpReLU):
        return h * (h > rule.threshold).detach()
    if isinstance(rule, BatchTopK):
        cut = h.flatten().topk(rule.k * len(h)).values.min()
        return torch.where(h >= cut, h.relu(), 0.0)
    cut = h.topk(rule.k, dim=1).values[:, -1:]
    return torch.where(h >= cut, h.relu(), 0.0)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "jumprelu"])
def test_training_gradients_equal_dense_autograd(name: str):
    """The whole loss, AuxK included: relative error under 1e-4 for every parameter."""
    rule = {"topk": TopK(4), "batchtopk": BatchTopK(4), "jumprelu": JumpReLU(4, LATENTS, 0.1, 0.0)}[name]
    model = Autoencoder(WIDTH, LATENTS, torch.Generator().manual_seed(0))
    model.b_enc.data = random(LATENTS, seed=5) * 0.1
    y, dead = random(ROWS, WIDTH, seed=6), torch.tensor([1, 7, 40])
    rule.start(model.fast_preactivations(y, torch.float32))
    parameters = dict(model.named_parameters())

    reconstruction, *_ = model(y, rule, torch.float32)
    loss = (y - reconstruction).square().sum() + model.auxk(y, (y - reconstruction).detach(), dead, 2)
    ours = torch.autograd.grad(loss, list(parameters.values()))

    h = y @ model.encoder.T + model.b_enc
    dense = dense_codes(h, rule) @ model.decoder + model.b_dec
    revived = torch.zeros_like(h[:, dead])
    best = h[:, dead].topk(2, dim=1)
    revived = revived.scatter(1, best.indices, best.values.relu())
    residual = (y - dense).detach()
    aux = (residual - revived @ model.decoder[dead]).square().sum() / (residual - residual.mean(0)).square().sum()
    theirs = torch.autograd.grad((y - dense).square().sum() + aux, list(parameters.values()))

    for parameter, a, b in zip(parameters, ours, theirs, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-4, parameter
    assert float(ours[1].norm()) > 0 and float(ours[0].norm()) > 0


def test_auxk_reaches_encoder_and_decoder_of_the_dead_alone():
    model = Autoencoder(WIDTH, LATENTS, torch.Generator().manual_seed(0))
    y, dead = random(ROWS, WIDTH), torch.tensor([2, 9])
    model.auxk(y, y, dead, 1).backward()
    for parameter in (model.encoder, model.decoder):
        assert parameter.grad is not None
        touched = parameter.grad.norm(dim=1).nonzero().flatten()
        assert touched.tolist() == dead.tolist()
