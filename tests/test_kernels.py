"""Sparse products and their gradients equal the dense ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from strata.sae.engine import products, vnni
from strata.sae.engine.dispatch import decode, largest, preactivations_at
from strata.sae.engine.nonlinearity import Nonlinearity
from strata.sae.engine.pattern import Pattern, joined, pattern_of
from strata.sae.engine.preactivations import Block, Bytes, Preactivations
from strata.sae.sae import SAE
from strata.training.autoencoder import Autoencoder
from strata.training.rules import errors
from strata.training.rules.base import Rule
from strata.training.rules.jumprelu import JumpReLU, Reward
from strata.training.rules.relu import Gated, ReLU
from strata.training.rules.topk import BatchTopK, Matryoshka, TopK

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
    assert [part.tolist() for part in pattern.transposed] == [[0, 2, 1], [0, 1, 2, 3], [0, 2, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("latents", [64, 61])
def test_selections_equal_plain_ones(dtype: torch.dtype, latents: int):
    block = Block(random(ROWS, latents).to(dtype), random(latents, seed=3) / 4)
    h = block.product.float() + block.bias
    for low in (torch.tensor(0.0), torch.tensor(1.3), random(latents, seed=1)):
        assert block.above(low).dense(torch.ones(10**4)[: int((h > low).sum())]).bool().equal(h > low)
    for least in (1, 3, 20, latents + 5):
        found = block.strongest(least)
        assert int(found.starts.diff().max()) <= least + least // 4 + 2  # two: as bfloat16 some are equal
        chosen = found.dense(torch.ones(len(found.latents))).bool()
        best = h.topk(min(least, latents), dim=1).values
        assert bool((h.where(chosen, 0).topk(min(least, latents), dim=1).values == best.relu()).all())
        for k in (1, least):
            top, values = largest(found, h[found.row_of, found.latents], k)
            expected = h.topk(min(k, latents), dim=1).values.relu()
            assert top.dense(values).sum(1).allclose(expected.sum(1))
            assert bool((top.starts.diff() == (expected > 0).sum(1)).all())


def bytes_of(rows: int, latents: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, encoder, bias, balance: rows, latents and columns of very different size."""
    y = random(rows, width) * torch.logspace(-1, 1, rows)[:, None] * torch.logspace(-0.5, 0.5, width)
    encoder = random(latents, width, seed=1) * torch.logspace(1, -1, latents)[:, None]
    return y, encoder, random(latents, seed=2), random(width, seed=3).abs() + 0.5


@pytest.mark.skipif(not vnni.there(), reason="this CPU has no AVX-512 VNNI")
@pytest.mark.parametrize("rows, latents, width", [(1, 1, 1), (4, 64, 8), (35, 130, 17), (130, 61, 320)])
def test_selections_of_bytes_equal_whole_products(rows: int, latents: int, width: int):
    """Sizes with and without padding; numbers are rounded to the nearest, and multiplied without a loss."""
    y, encoder, bias, balance = bytes_of(rows, latents, width)
    q, row_scales = map(torch.from_numpy, vnni.of_rows(y.numpy(), balance.reciprocal().numpy()))
    q, row_scales = q[:rows, :width].double() - 128, row_scales[:rows, None].double()
    panels = vnni.room(latents, width)
    scales = torch.from_numpy(vnni.of_latents(encoder.numpy(), balance.numpy(), panels)[1])[:latents, None].double()
    fours = torch.from_numpy(panels).view(torch.int8).unflatten(2, (vnni.PANEL, 4))
    weights = fours.transpose(1, 2).flatten(0, 1).flatten(1)[:latents, :width].double()
    assert bool(((row_scales * q - y / balance).abs() <= 0.501 * row_scales).all())
    assert bool(((scales * weights - encoder * balance).abs() <= 0.501 * scales).all())

    h, chosen = (row_scales * q) @ (scales * weights).T + bias, Bytes.of(y, encoder, bias, balance)
    for low in (torch.tensor(0.0), torch.tensor(1.3), random(latents, seed=4)):
        found = chosen.above(low)
        marks = found.dense(torch.ones(len(found.latents))).bool()
        assert bool((marks.equal(h > low)) or (h - low)[marks != (h > low)].abs().max() < 1e-4)
    for least in (1, 20):
        found = chosen.strongest(least)
        marks = found.dense(torch.ones(len(found.latents))).bool()
        best = h.topk(min(least, latents), dim=1).values
        torch.testing.assert_close(h.where(marks, 0).topk(min(least, latents), dim=1).values, best.relu())
        assert int(found.starts.diff().max()) <= least + least // 4 + 2  # two: as bfloat16 some are equal
        assert int(marks.sum()) == len(found.latents)


@pytest.mark.skipif(not vnni.there(), reason="this CPU has no AVX-512 VNNI")
def test_what_is_not_a_number_stays_in_its_row_and_leads_to_no_latent_that_is_not_there():
    y, encoder, bias, balance = bytes_of(35, 61, 17)
    broken = y.clone()
    broken[7, 3], broken[9, 4] = torch.nan, torch.inf
    bad = encoder.clone()
    bad[5, 2], bad[60, 0] = torch.nan, torch.inf
    whole, found = (Bytes.of(rows, encoder, bias, balance).above(torch.tensor(0.5)) for rows in (y, broken))
    kept, expected = (one.keep((one.row_of != 7) & (one.row_of != 9)) for one in (found, whole))
    assert kept.latents.equal(expected.latents) and kept.starts.equal(expected.starts)
    for chosen in (Bytes.of(broken, encoder, bias, balance), Bytes.of(y, bad, bias, balance)):
        for one in (chosen.above(torch.tensor(0.5)), chosen.strongest(8)):
            assert int(one.latents.max()) < 61


@pytest.mark.skipif(not vnni.there(), reason="this CPU has no AVX-512 VNNI")
def test_every_latent_of_a_panel_can_be_the_only_one_and_parts_of_the_rows_are_the_whole():
    chosen = Bytes.of(torch.eye(64), torch.eye(64), torch.zeros(64), torch.ones(64))
    for found in (chosen.above(torch.tensor(0.5)), chosen.strongest(1)):
        assert found.latents.equal(torch.arange(64)) and found.starts.equal(torch.arange(65))
    parts = joined([part.above(torch.tensor(0.5)) for part in chosen.split(20)])
    assert parts.latents.equal(torch.arange(64)) and parts.starts.equal(torch.arange(65))
    assert not len(Bytes.of(torch.zeros(0, 64), torch.eye(64), torch.zeros(64), torch.ones(64)).strongest(1).latents)


def test_joined_patterns_are_the_rows_one_below_the_other(pattern: Pattern):
    mask = pattern.dense(torch.ones(len(pattern.latents))).bool()
    parts = joined([pattern_of(part) for part in mask.split(10)])
    assert parts.starts.equal(pattern.starts) and parts.latents.equal(pattern.latents)


@pytest.mark.parametrize("product", [torch.int8, torch.bfloat16])
@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_the_cheap_product_loses_nothing(product: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch):
    """Columns and rows of very different size, as in residual streams: the chosen are those of the exact h."""
    if product is torch.int8 and not vnni.there():
        pytest.skip("this CPU has no AVX-512 VNNI")
    monkeypatch.setattr("strata.sae.engine.preactivations.product_dtype", lambda *_: product)
    monkeypatch.setattr("strata.sae.engine.preactivations.ROWS", 8)
    y = random(500, 319) * torch.logspace(-1, 1, 319) * torch.logspace(-1, 1, 500)[:, None]
    model = Autoencoder(319, 1023, torch.Generator().manual_seed(0))
    model.b_enc.data = random(1023, seed=5)
    model.start(y, 16, torch.Generator().manual_seed(1))
    rule = {"topk": TopK(16), "batchtopk": BatchTopK(16)}[name]
    rule.start(model, y)
    pattern, values = rule.select(Preactivations(y, model.encoder, model.b_enc, model.balance))
    h = (y @ model.encoder.T + model.b_enc).detach()
    torch.testing.assert_close(values, h[pattern.row_of, pattern.latents], rtol=1e-4, atol=1e-4)
    exact = h.topk(16, dim=1).values if name == "topk" else h.flatten().topk(16 * 500).values
    torch.testing.assert_close(values.sum(), exact.relu().sum(), rtol=1e-6, atol=0)


def test_products_equal_dense_ones(pattern: Pattern):
    x, weight, values = random(ROWS, WIDTH), random(LATENTS, WIDTH, seed=1), random(len(pattern.latents), seed=2)
    bias = random(LATENTS, seed=3)
    expected = (x @ weight.T + bias)[pattern.row_of, pattern.latents]
    torch.testing.assert_close(preactivations_at(x, weight, bias, pattern), expected)
    torch.testing.assert_close(decode(values, weight, pattern), pattern.dense(values) @ weight)


def test_gradients_equal_dense_ones(pattern: Pattern):
    x, weight = random(ROWS, WIDTH).requires_grad_(), random(LATENTS, WIDTH, seed=1).requires_grad_()
    bias = random(LATENTS, seed=5).requires_grad_()
    values = random(len(pattern.latents), seed=2).requires_grad_()
    out, back = random(ROWS, WIDTH, seed=3), random(len(pattern.latents), seed=4)

    ours = torch.autograd.grad((preactivations_at(x, weight, bias, pattern) * back).sum(), [x, weight, bias])
    dense = (x @ weight.T + bias)[pattern.row_of, pattern.latents]
    theirs = torch.autograd.grad((dense * back).sum(), [x, weight, bias])
    torch.testing.assert_close(ours, theirs)

    ours = torch.autograd.grad((decode(values, weight, pattern) * out).sum(), [values, weight])
    theirs = torch.autograd.grad((pattern.dense(values) @ weight * out).sum(), [values, weight])
    torch.testing.assert_close(ours, theirs)


RULES: dict[str, Rule] = {
    "topk": TopK(4),
    "batchtopk": BatchTopK(4),
    "matryoshka": Matryoshka(4, [8, 24, LATENTS]),
    "jumprelu": JumpReLU(4, LATENTS, 0.1, 0.3),
    "relu": ReLU(4, 0.2, 0.0, 0.0),
    "gated": Gated(4, LATENTS, 0.2, 0.0, 0.0),
    "reward": Reward(4, LATENTS, 0.1, 0.01, 0.1),
}


def dense_codes(h: Tensor, rule: Rule, model: Autoencoder, drawn: Tensor) -> tuple[Tensor, Tensor | float]:
    """The rule's equations on a dense h: codes and penalty (its unit is 1), gradients by autograd alone.

    ``drawn``: where reward's mask is 1. jumprelu's surrogate is stated by hand in test_rules; here θ is left alone.
    """
    if isinstance(rule, JumpReLU):
        return h * (h > rule.threshold).detach(), 0.0
    if isinstance(rule, Reward):
        logit = (h - rule.threshold) / rule.bandwidth
        window = (h > rule.threshold - rule.reach).detach() & (h > 0)
        return h.relu() * drawn, (1 / (1 + torch.exp(-logit))).where(window, 0.0)
    if isinstance(rule, Gated):
        return (rule.r.exp() * h + rule.c).relu() * (h > 0), rule.coefficient * h.relu().sum()
    if isinstance(rule, ReLU):
        return h.relu(), rule.coefficient * h.relu().sum()
    if isinstance(rule, BatchTopK):
        cut = h.flatten().topk(rule.k * len(h)).values.min()
        return torch.where(h >= cut, h.relu(), 0.0), 0.0
    assert isinstance(rule, TopK)
    cut = h.topk(rule.k, dim=1).values[:, -1:]
    return torch.where(h >= cut, h.relu(), 0.0), 0.0


ENDINGS: dict[Nonlinearity, tuple[Any, Any]] = {  # g and g′
    "identity": (lambda u: u, torch.ones_like),
    "tanh": (torch.tanh, lambda u: 1 / torch.cosh(u) ** 2),
    "sigmoid": (torch.sigmoid, lambda u: 1 / (2 + torch.exp(u) + torch.exp(-u))),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", RULES)
def test_training_gradients_equal_dense_autograd(name: str, ending: Nonlinearity, device: str = "cpu"):
    """The whole loss, penalty and AuxK included: relative error under 1e-4 for every parameter."""
    rule, (g, slope) = RULES[name].to(device), ENDINGS[ending]
    model = Autoencoder(WIDTH, LATENTS, torch.Generator().manual_seed(0), decoder_activation=ending).to(device)
    model.b_enc.data = random(LATENTS, seed=5).to(device) * 0.1
    y, dead = random(ROWS, WIDTH, seed=6).to(device), torch.tensor([1, 7, 40], device=device)
    rule.start(model, y)
    rule.schedule(1.0)
    parameters = {**dict(model.named_parameters()), **dict(rule.named_parameters())}

    run = model(y, rule, torch.Generator(device).manual_seed(7))
    loss = run.error
    if not isinstance(rule, JumpReLU):
        loss = loss + rule.penalty(model, run, 1.0)
    loss = loss + model.auxk(y, model.unexplained(run), dead, 2)
    ours = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)

    h = y @ model.encoder.T + model.b_enc
    drawn = run.pattern.dense(run.codes.detach()) > 0
    codes, penalty = dense_codes(h, rule, model, drawn)
    ends = rule.ends(LATENTS)
    before = [codes[:, :end] @ model.decoder[:end] + model.b_dec for end in ends]
    outputs = [g(u) for u in before]
    residual = (y - outputs[-1]).detach() * slope(before[-1]).detach()
    if isinstance(rule, Gated):
        penalty = penalty + (y - g(h.relu() @ model.decoder.detach() + model.b_dec.detach())).square().sum()
    if isinstance(rule, Reward):
        assert isinstance(penalty, Tensor)  # the probability of each entry
        code, mask, rarity = h.relu().detach(), drawn.float(), 1 - drawn.float().mean(0)
        along = residual @ model.decoder.detach().T + mask * code
        others = mask.sum(1, keepdim=True) - mask
        others_rarity = (mask * rarity).sum(1, keepdim=True) - mask * rarity
        novelty = (others_rarity + rarity) / (others + 1) - others_rarity / others.clamp(min=1)
        gain = (2 * along - code) * code * ROWS + 0.1 * novelty - 0.01
        penalty = -(gain * penalty).sum() / ROWS
    revived = torch.zeros_like(h[:, dead])
    best = h[:, dead].topk(2, dim=1)
    revived = revived.scatter(1, best.indices, best.values.relu())
    aux = (residual - revived @ model.decoder[dead]).square().sum() / (residual - residual.mean(0)).square().sum()
    error = torch.stack([(y - output).square().sum() for output in outputs]).mean()
    theirs = torch.autograd.grad(error + penalty + aux, list(parameters.values()), allow_unused=True)

    for parameter, a, b in zip(parameters, ours, theirs, strict=True):
        if isinstance(rule, JumpReLU) and parameter == "threshold":
            continue
        assert a is not None and b is not None
        assert float((a - b).norm() / b.norm()) < 1e-4, parameter
    assert ours[0] is not None and ours[1] is not None
    assert float(ours[1].norm()) > 0 and float(ours[0].norm()) > 0


@pytest.mark.parametrize("ends", [[LATENTS], [7, 8, 30, LATENTS]])
def test_the_error_in_the_cache_is_that_of_the_products(ends: list[int], monkeypatch: pytest.MonkeyPatch):
    """Rows and groups without entries included."""
    mask = (random(ROWS, LATENTS) > 1.0) & (torch.arange(ROWS) % 5 > 0)[:, None]
    mask[:, 7] = False
    pattern = pattern_of(mask)
    leaves = [random(len(pattern.latents), seed=1), random(LATENTS, WIDTH, seed=2), random(WIDTH, seed=3)]
    found = []
    for fused in (True, False):
        monkeypatch.setattr(errors, "_fused", lambda kind, y, fused=fused: fused)
        codes, decoder, b_dec = (leaf.clone().requires_grad_() for leaf in leaves)
        y = random(ROWS, WIDTH, seed=4)
        error, residual = errors.squared_error(codes, decoder, b_dec, y, pattern, ends, "identity")
        found.append([error, residual, *torch.autograd.grad(3 * error, [codes, decoder, b_dec])])
        assert not residual.requires_grad
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ends", [[350], [30, 30, 350]])
def test_blocks_of_rows_and_latents_give_what_dense_products_do(ends: list[int]):
    """Rows so wide and so full that several blocks are taken; a third of the codes is 0, whole runs of them."""
    rows, width, latents = 300, 640, 350
    mask = random(rows, latents) > 1.0
    mask[50] = False
    pattern = pattern_of(mask)
    side = products.CACHE // (12 * width)
    assert rows > side and latents > 2 * side and 2 * len(pattern.latents) * side > products.FEW * rows * latents
    y, weight, bias = random(rows, width, seed=1), random(latents, width, seed=2), random(latents, seed=3)
    codes = random(len(pattern.latents), seed=4) * (torch.arange(len(pattern.latents)) % 30 >= 10)
    b_dec, leaves = random(width, seed=5), []
    expected = (y @ weight.T + bias)[pattern.row_of, pattern.latents]
    torch.testing.assert_close(preactivations_at(y, weight, bias, pattern), expected, rtol=1e-4, atol=1e-4)
    for sparse in (True, False):
        z, decoder, offset = (leaf.clone().requires_grad_() for leaf in (codes, weight, b_dec))
        if sparse:
            error, residual = errors.squared_error(z, decoder, offset, y, pattern, ends, "identity")
        else:
            dense = pattern.dense(z)
            found = [y - dense[:, :end] @ decoder[:end] - offset for end in ends]
            error, residual = torch.stack([each.square().sum() for each in found]).mean(), found[-1]
        leaves.append([error, residual, *torch.autograd.grad(error / rows, [z, decoder, offset])])
    for ours, theirs in zip(*leaves, strict=True):
        assert float((ours - theirs).detach().norm() / theirs.detach().norm()) < 1e-5


@pytest.mark.parametrize("together", [False, True])
def test_the_largest_entries_by_hand(together: bool):
    """Of equals the first, across rows when these are taken together; nothing that is not positive."""
    pattern = Pattern(torch.tensor([0, 4, 4, 8]), torch.tensor([0, 2, 5, 6, 1, 2, 3, 9]), 10)
    values = torch.tensor([2.0, 1.0, 2.0, 2.0, -1.0, 2.0, 0.0, 3.0])
    top, kept = largest(pattern, values, 4 if together else 2, together)
    found = list(zip(top.row_of.tolist(), top.latents.tolist(), kept.tolist(), strict=True))
    assert found[:2] == [(0, 0, 2.0), (0, 5, 2.0)]
    assert found[2:] == ([(0, 6, 2.0)] if together else [(2, 2, 2.0)]) + [(2, 9, 3.0)]
    assert len(largest(pattern, values, 8, together)[1]) == 6
    values[:4] = float("nan")  # stays, so that training finds it
    assert bool(largest(pattern, values, 2, together)[1].isnan().any())


def test_the_fast_encoder_gives_the_codes_of_the_plain_product():
    """Thresholds of all sizes, rows of very different norms; nothing is lost to bfloat16."""
    x = random(400, 96) * torch.logspace(-1, 3, 400)[:, None]
    encoder, b_enc, b_dec = random(512, 96, seed=1) / 10, random(512, seed=2), random(96, seed=3)
    sae = SAE(encoder, b_enc, random(512, 96, seed=4), b_dec, threshold=random(512, seed=5).exp())
    h = sae.preactivations(x)
    assert sae.threshold is not None
    expected = h * (h > sae.threshold)
    codes = sae.encode(x)
    assert bool((codes.values > 0).all()) and len(codes.values) > 50_000
    torch.testing.assert_close(codes.pattern.dense(codes.values), expected, rtol=1e-4, atol=1e-3)
    assert codes.active().equal((expected > 0).sum(1))


def test_auxk_reaches_encoder_and_decoder_of_the_dead_alone():
    model = Autoencoder(WIDTH, LATENTS, torch.Generator().manual_seed(0))
    y, dead = random(ROWS, WIDTH), torch.tensor([2, 9])
    model.auxk(y, y, dead, 1).backward()
    for parameter in (model.encoder, model.decoder):
        assert parameter.grad is not None
        touched = parameter.grad.norm(dim=1).nonzero().flatten()
        assert touched.tolist() == dead.tolist()
