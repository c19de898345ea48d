"""Training and measuring on a device that is not the CPU, told apart from it strictly, and with the CPU's arithmetic.

A tensor on that device holds one on the CPU. Like CUDA, it refuses operations that mix it with tensors on the CPU
unless they are single numbers, and draws with generators of the CPU; stricter, it refuses the CPU's indices too.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_extract import extract
from test_extract import knobs as extract_knobs
from test_train import FOUND, TARGETS, hashes, knobs
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from stages.train import judge as room
from strata.device.machine import CPU
from strata.lm.model import load
from strata.rows.shards import Activations, Contexts, open_activations, open_contexts
from strata.sae.engine import dispatch, preactivations
from strata.sae.engine.pattern import Pattern
from strata.training import fit, training, update
from strata.training.rules import errors

AWAY = torch.device("meta")
Generator = torch.Generator
ACROSS = (torch.ops.aten._to_copy, torch.ops.aten.to, torch.ops.aten.copy_)  # these may take both kinds


class Away(torch.Tensor):
    """A tensor that says that it is away."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Away":
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=AWAY
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_cpu(func, args, kwargs or {})


def inner(value: Any) -> Any:
    """What stands for it on the CPU."""
    return value.inner if isinstance(value, Away) else CPU if isinstance(value, torch.device) else value


def on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do it on the CPU; the result is where a device among the arguments says, or else where the tensors are."""
    leaves = tree_leaves((args, kwargs))
    away = any(isinstance(leaf, Away) for leaf in leaves)
    if away and func.overloadpacket not in ACROSS:
        there = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Away)]
        assert all(leaf.dim() == 0 for leaf in there), f"{func} mixes devices"
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if func.overloadpacket is torch.ops.aten.copy_:
        devices = [args[0].device]
    to_away = devices[0] == AWAY if devices else away
    found = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    return tree_map(lambda leaf: Away(leaf) if to_away and isinstance(leaf, torch.Tensor) else leaf, found)


class Device(TorchDispatchMode):
    """Makes tensors that are asked for on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_cpu(func, args, kwargs or {})


class AwayGenerator(Generator):
    """A generator of the device."""


class Draws(TorchFunctionMode):
    """Looks at generators, which lose their class on the way to a dispatch, as does what tolist gives."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if generator := kwargs.get("generator"):
            place = kwargs.get("device") or (args[0].device if isinstance(args[0], torch.Tensor) else "cpu")
            assert isinstance(generator, AwayGenerator) == (torch.device(place) == AWAY), f"{func} draws elsewhere"
        return func(*map(inner, args)) if func is torch.Tensor.tolist else func(*args, **kwargs)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    def generator(device: Any = "cpu") -> Generator:
        return AwayGenerator() if torch.device(device) == AWAY else Generator()

    def product(name: str) -> Any:
        function = getattr(dispatch, name)
        return lambda *args: Away(function(*map(plainly, args))) if away(args) else function(*args)

    def plainly(value: Any) -> Any:
        if isinstance(value, Pattern):
            return Pattern(inner(value.starts), inner(value.latents), value.width)
        return inner(value)

    def away(args: Any) -> bool:
        leaves = [part for arg in args for part in (vars(arg).values() if isinstance(arg, Pattern) else [arg])]
        kinds = {isinstance(leaf, Away) for leaf in leaves if isinstance(leaf, torch.Tensor)}
        assert len(kinds) == 1, "the product mixes devices"
        return kinds.pop()

    monkeypatch.setattr(torch, "Generator", generator)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(fit, "load_file", lambda path, device: {k: t.to(device) for k, t in load_file(path).items()})
    monkeypatch.setattr(errors, "_fused", lambda kind, y: False)  # its sums are in another order,
    monkeypatch.setattr(update, "by_rows", update.step_by_step)  # and so are these
    for name in ("sddmm", "_sum_rows", "sum_latents"):
        monkeypatch.setattr(dispatch, name, product(name))
    monkeypatch.setattr(preactivations, "sddmm", dispatch.sddmm)
    with Device(), Draws():
        yield AWAY


@pytest.fixture(scope="module")
def stream(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Activations, Contexts]:
    folder = tmp_path_factory.mktemp("stream")
    extract(folder, gpt2, [1], extract_knobs())
    return open_activations(folder / "1"), open_contexts(folder / "tokens")


@pytest.mark.parametrize("rule", FOUND)
def test_training_elsewhere_is_the_same(
    stream: tuple[Activations, Contexts], gpt2: Path, tmp_path: Path, device: torch.device, rule: str
):
    """Started, broken off, gone on with, measured: all of it on the device, with the bytes and numbers of the CPU.

    topk proposes some more candidates on a CPU, so that a candidate may stand at another place among the four whose
    products are computed together; on CPUs without AVX-512 its last bit then differs.
    """
    rows, contexts = stream
    common = {
        "batch_size": 64,
        "epochs": 2,
        "resample_every": 1,
        "outliers": "skip",
        "init": "data",
        "ce_tokens": 30,
    }
    plan = knobs(rule=rule, **common, **FOUND[rule])
    # Of a padding token the model would warn, by an index that is made past any dispatch.
    unpadded = tmp_path / "lm"
    shutil.copytree(gpt2, unpadded)
    config = json.loads((unpadded / "config.json").read_text())
    (unpadded / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    found = {}
    for place in (CPU, device):
        work = tmp_path / place.type
        work.mkdir()
        fitted = training.train(rows, plan, TARGETS, 0, work=work, device=place)
        fitted = training.train(rows, plan, TARGETS, 0, work=work, device=place)  # from the last state
        assert all(t.device == place for sae in fitted.saes.values() for t in sae.tensors().values())
        lm = load(unpadded, torch.float32, place)
        report, frequency = room.measure(fitted, rows, contexts, lm, plan)
        found[place] = hashes(fitted, work), report, frequency.tolist()
        if rule == "topk":
            weights = {name: tensor.to(CPU) for name, tensor in fitted.best.tensors().items()}
            found[place] = {name: inner(tensor).tolist() for name, tensor in weights.items()}, report["test"]
    if rule == "topk":
        for mine, theirs in zip(found[device], found[CPU], strict=True):
            assert mine.keys() == theirs.keys()
            for name, values in mine.items():
                np.testing.assert_allclose(np.array(values, float), np.array(theirs[name], float), 1e-3, 1e-4)
    else:
        assert found[device] == found[CPU]


ALIGNED = """
import torch
from strata.device.machine import start
from strata.run.params import Machine

start(Machine(device="cpu", threads=2, save_every=60))
x, weights = torch.randn(300, 640), torch.randn(2048, 640)
room = torch.empty(weights.numel() + 16)
for shift in range(16):
    moved = room[shift : shift + weights.numel()].view_as(weights).copy_(weights)
    print(all(torch.equal(x[:rows] @ moved.T, x[:rows] @ weights.T) for rows in (1, 7, 300)))
"""


def test_a_product_is_the_same_wherever_its_matrices_lie_in_memory():
    """Without `round_alike` some of them differ on a processor with AVX2 and no AVX-512."""
    said = subprocess.run([sys.executable, "-c", ALIGNED], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["True"] * 16
