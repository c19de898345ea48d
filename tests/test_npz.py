"""An SAE as plain arrays: numpy alone computes its codes, and nothing is lost on the way there and back."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.convert import main
from strata.formats import npz
from strata.run.door import BadInput
from strata.sae import disk
from strata.sae.sae import SAE

LATENTS, WIDTH = 48, 16
NUMPY = """
import sys
import numpy as np
x, encoder, decoder = (np.load(name) for name in sys.argv[1:4])
h = x @ encoder["W"].T + encoder["b"]
if "k" in encoder:
    places = np.argsort(-h, axis=1, kind="stable")[:, : int(encoder["k"])]
    kept = np.zeros(h.shape, bool)
    np.put_along_axis(kept, places, True, 1)
    codes = np.where(kept & (h > 0), h, 0)
else:
    codes = np.where(h > encoder["threshold"], h, 0)
assert "torch" not in sys.modules
np.savez(sys.argv[4], codes=codes, back=codes @ decoder["W"] + decoder["b"])
"""


def made(**rule: Any) -> SAE:
    random = torch.Generator().manual_seed(0)
    encoder, decoder, b_dec = (
        torch.randn(*shape, generator=random) for shape in ((LATENTS, WIDTH), (LATENTS, WIDTH), (WIDTH,))
    )
    b_enc = 0.1 * torch.randn(LATENTS, generator=random)
    return SAE(encoder, b_enc, decoder, b_dec, **(rule or {"threshold": torch.rand(LATENTS, generator=random)}))


@pytest.mark.parametrize("rule", [{}, {"k": 5}])
def test_numpy_alone_computes_the_codes(tmp_path: Path, rule: dict[str, Any]) -> None:
    sae = made(**rule)
    disk.save(tmp_path / "sae", sae, {"hook_name": "vectors"})
    main(str(tmp_path / "sae"), str(tmp_path / "out"), "npz")
    x = torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(1)) + sae.b_dec
    np.save(tmp_path / "x.npy", x.numpy())
    names = ("x.npy", "out/encoder.npz", "out/decoder.npz", "found.npz")
    subprocess.run([sys.executable, "-c", NUMPY, *(str(tmp_path / name) for name in names)], check=True)
    found, codes = np.load(tmp_path / "found.npz"), sae.encode(x)
    assert np.abs(found["codes"] - codes.pattern.dense(codes.values).numpy()).max() < 1e-5
    assert np.abs(found["back"] - sae.decode(codes).numpy()).max() < 1e-4


@pytest.mark.parametrize("rule", [{}, {"k": 5}])
def test_there_and_back(tmp_path: Path, rule: dict[str, Any]) -> None:
    sae, metadata = made(**rule), {"hook_name": "blocks.3.hook_resid_post", "context_size": 128}
    npz.save(tmp_path, sae, metadata)
    back, config = npz.load(tmp_path / "encoder.npz")
    assert config["metadata"] == metadata and back.k == sae.k
    for name, tensor in sae.tensors().items():
        assert torch.allclose(back.tensors()[name], tensor, atol=1e-6), name


def test_a_bare_encoder_is_a_relu(tmp_path: Path) -> None:
    """What Spindle writes: W and b alone."""
    w, b = np.eye(3, 2, dtype=np.float32), np.array([0.0, -1.0, 0.5], np.float32)
    np.savez(tmp_path / "encoder_weights.npz", W=w, b=b)
    sae, config = npz.load(tmp_path / "encoder_weights.npz")
    codes = sae.encode(torch.tensor([[2.0, 3.0], [-1.0, 0.5]]))
    assert codes.pattern.dense(codes.values).tolist() == [[2.0, 2.0, 0.5], [0.0, 0.0, 0.5]]
    assert config["metadata"] == {}


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"W": np.zeros((3, 2))}, "must hold W"),
        ({"W": np.zeros((3, 2)), "b": np.zeros(2)}, "must hold W"),
        ({"W": np.zeros((3, 2)), "b": np.zeros(3), "k": np.array(4)}, "up to 3"),
        ({"W": np.zeros((3, 2)), "b": np.zeros(3), "threshold": np.zeros(2)}, "threshold must be"),
        ({"W": np.array([{}, {}], object)}, "no file of plain arrays"),
        ({"W": np.zeros((0, 2)), "b": np.zeros(0)}, "must hold W"),
        ({"W": np.full((3, 2), np.nan), "b": np.zeros(3)}, "'W' holds NaN"),
        ({"W": np.ones((3, 2)), "b": np.full(3, np.inf)}, "'b' holds NaN, infinity"),
        ({"W": np.full((3, 2), 1e300), "b": np.zeros(3)}, "beyond float32"),
        ({"W": np.ones((3, 2), complex), "b": np.zeros(3)}, "'W' is of complex128; real numbers are needed"),
        ({"W": np.full((3, 2), "a"), "b": np.zeros(3)}, "'W' is of <U1"),
        ({"W": np.ones((3, 2)), "b": np.zeros(3), "threshold": np.full(3, np.nan)}, "'threshold' holds NaN"),
        ({"W": np.ones((3, 2)), "b": np.zeros(3), "k": np.array("a")}, "k a number up to 3"),
        ({"W": np.ones((3, 2)), "b": np.zeros(3), "k": np.array(1.5)}, "k a number up to 3"),
        ({"W": np.ones((3, 2)), "b": np.zeros(3), "k": np.array([1])}, "k a number up to 3"),
        ({"W": np.ones((3, 2)), "b": np.zeros(3), "metadata": np.array("{")}, "'metadata' is not JSON"),
        ({"W": np.ones((3, 2)), "b": np.zeros(3), "metadata": np.array("[" * 9999)}, "'metadata' is not JSON"),
        ({"W": np.ones((3, 2)), "b": np.zeros(3), "metadata": np.array("[1]")}, "must be a text, a JSON object"),
        ({"W": np.ones((3, 2)), "b": np.zeros(3), "metadata": np.zeros(3)}, "must be a text, a JSON object"),
    ],
)
def test_arrays_that_are_no_encoder(tmp_path: Path, arrays: dict[str, Any], why: str) -> None:
    np.savez(tmp_path / "encoder.npz", **arrays)
    with pytest.raises(BadInput, match=why):
        npz.load(tmp_path / "encoder.npz")


def test_a_decoder_beside_it_that_does_not_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "encoder.npz", W=np.ones((3, 2)), b=np.zeros(3))
    for arrays, why in (
        ({"W": np.ones((3, 2))}, "holds"),
        ({"W": np.ones((2, 2)), "b": np.zeros(2)}, "but encoder.npz is"),
        ({"W": np.full((3, 2), np.nan), "b": np.zeros(2)}, "'W' holds NaN"),
        ({"W": np.full((3, 2), "a"), "b": np.zeros(2)}, "real numbers"),
    ):
        np.savez(tmp_path / "decoder.npz", **arrays)  # pyright: ignore[reportArgumentType]
        with pytest.raises(BadInput, match=why):
            npz.load(tmp_path / "encoder.npz")


def test_numbers_of_other_machines_and_orders(tmp_path: Path) -> None:
    w = np.arange(6.0).reshape(3, 2)
    np.savez_compressed(tmp_path / "encoder.npz", W=np.asfortranarray(w.astype(">f8")), b=np.arange(3, dtype=">f4"))
    sae, _ = npz.load(tmp_path / "encoder.npz")
    assert sae.encoder.tolist() == w.tolist() and sae.b_enc.tolist() == [0, 1, 2]


def test_what_arrays_cannot_say(tmp_path: Path) -> None:
    bent = replace(made(), mean=torch.zeros(WIDTH), decoder_activation="tanh")
    groups = replace(made(), groups=torch.zeros(LATENTS, dtype=torch.int64), shares=torch.ones(LATENTS))
    for sae, why in ((bent, "ends in tanh"), (groups, "sums of parts")):
        with pytest.raises(BadInput, match=why):
            npz.save(tmp_path, sae, {})
    with pytest.raises(BadInput, match="is missing"):
        npz.load(tmp_path / "encoder.npz")
    assert not list(tmp_path.iterdir())
