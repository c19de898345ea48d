"""The Triton kernels: their results equal dense ones, and they compile for CUDA.

Where there is a CUDA device all of it runs there; in any case Triton's interpreter runs it on the CPU, in a process of
its own, because Triton decides on being imported.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import test_kernels
import torch
from test_kernels import RULES, random
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.functional import relu

from strata.sae.engine import dispatch
from strata.sae.engine.dispatch import decode, preactivations_at
from strata.sae.engine.pattern import Pattern, pattern_of
from strata.training.autoencoder import Autoencoder
from strata.training.rules import errors

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
on_device = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no CUDA device")
outside = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, tensors on the CPU take the way of those on a CUDA device."""
    if INTERPRETED:
        cuda = dispatch._triton()
        monkeypatch.setattr(dispatch, "sddmm", cuda.sddmm)
        monkeypatch.setattr(dispatch, "_sum_rows", cuda.sum_rows)
        monkeypatch.setattr(dispatch, "sum_latents", cuda.sum_latents)
        monkeypatch.setattr(errors, "_fused", lambda kind, y: False)


@outside
@pytest.mark.slow
def test_all_of_this_holds_in_the_interpreter():
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(words, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@outside
def test_tensors_on_cuda_go_to_the_kernels(monkeypatch: pytest.MonkeyPatch):
    names = ("sddmm", "sum_rows", "sum_latents")
    stub = SimpleNamespace(**{name: lambda *args, name=name: name for name in names})
    monkeypatch.setattr(dispatch, "_triton", lambda: stub)
    pattern = pattern_of(torch.ones(2, 2, dtype=torch.bool))
    with FakeTensorMode():
        x, values = torch.empty(2, 2, device="cuda"), torch.empty(4, device="cuda")
        assert dispatch.sddmm(x, x, pattern) == names[0]
        assert dispatch._sum_rows(values, pattern, x) == names[1]
        assert dispatch.sum_latents(values, pattern, x) == names[2]


MASKS = {
    "sparse": random(11, 23) > 1.0,
    "empty rows and latents": (random(9, 20) > 0.8) & (torch.arange(9) % 3 > 0)[:, None] & (torch.arange(20) % 4 > 1),
    "full": torch.ones(3, 9, dtype=torch.bool),
    "one entry": torch.arange(12).view(4, 3) == 7,
    "none": torch.zeros(3, 5, dtype=torch.bool),
    "a latent in every row": (torch.arange(4) == 2) | (random(300, 4) > 2.0),  # in three pieces, the others in one
    "two latents in every row": (torch.arange(3) > 0).expand(257, 3),  # the last piece is a single entry
}


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "width"), [("sparse", 259), ("full", 1), *((name, 7) for name in MASKS)])
def test_products_equal_dense_ones(name: str, width: int, dtype: torch.dtype):
    pattern = pattern_of(MASKS[name].to(DEVICE))
    x, weight = (random(n, width, seed=i).to(DEVICE, dtype) for i, n in enumerate(MASKS[name].shape))
    values = random(len(pattern.latents), seed=2).to(DEVICE, dtype)
    dense = pattern.dense(values.double())
    found = [
        dispatch.sddmm(x, weight, pattern),
        dispatch._sum_rows(values, pattern, weight),
        dispatch.sum_latents(values, pattern, x),
    ]
    expected = [
        (x.double() @ weight.double().T)[pattern.row_of, pattern.latents],
        dense @ weight.double(),
        dense.T @ x.double(),
    ]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@on_device
def test_the_same_bytes_twice():
    def once() -> list[Tensor]:
        pattern = pattern_of(MASKS["a latent in every row"].to(DEVICE))
        x, weight = random(300, 65).to(DEVICE), random(4, 65, seed=1).to(DEVICE)
        values = dispatch.sddmm(x, weight, pattern)
        return [values, dispatch._sum_rows(values, pattern, weight), dispatch.sum_latents(values, pattern, x)]

    for first, second in zip(once(), once(), strict=True):
        assert first.equal(second)


@on_device
@pytest.mark.parametrize("name", RULES)
def test_training_gradients_equal_dense_autograd(name: str):
    test_kernels.test_training_gradients_equal_dense_autograd(name, "identity", DEVICE)


@on_device
def test_auxk_by_its_indices_has_the_gradients_of_the_dense_one():
    """The k strongest of the gathered dead latents as a pattern of their own."""
    model = Autoencoder(13, 32, torch.Generator().manual_seed(0)).to(DEVICE)
    model.b_enc.data = random(32, seed=1).to(DEVICE) / 10
    dead = torch.tensor([1, 4, 9, 17, 30], device=DEVICE)
    y, residual = random(10, 13, seed=2).to(DEVICE), random(10, 13, seed=3).to(DEVICE)
    parameters = [model.encoder, model.decoder, model.b_enc]
    theirs = torch.autograd.grad(model.auxk(y, residual, dead, 2), parameters)

    encoder, decoder, bias = (p.index_select(0, dead) for p in parameters)
    chosen = torch.addmm(bias, y, encoder.T).topk(2, dim=1).indices
    pattern = Pattern(torch.arange(0, 21, 2, device=DEVICE), chosen.flatten(), len(dead))
    codes = relu(preactivations_at(y, encoder, bias, pattern))
    error = (residual - decode(codes, decoder, pattern)).square().sum()
    ours = torch.autograd.grad(error / (residual - residual.mean(0)).square().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-4


@outside
@pytest.mark.parametrize("dtype", ["*fp32", "*bf16"])
@pytest.mark.parametrize("kernel", ["dot_kernel", "sum_kernel", "add_kernel"])
def test_the_kernels_compile_for_cuda(kernel: str, dtype: str):
    """To the machine code of an A100, which needs none to be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from strata.sae.engine import cuda

    function = getattr(cuda, kernel)
    types = {"x": dtype, "weight": dtype, "matrix": dtype, "values": dtype, "out": "*fp32", "pieces": "*fp32"}
    sizes = {"ENTRIES": cuda.ENTRIES, "COLUMNS": cuda.COLUMNS}
    signature = {name: types.get(name, "constexpr" if name in sizes else "*i64") for name in function.arg_names}
    source = ASTSource(function, {**signature, "width": "i32"}, sizes)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]
