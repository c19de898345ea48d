"""Gemma Scope's `params.npz`: W_enc (width, latent), W_dec (latent, width), b_enc, b_dec, threshold.

h = x W_enc + b_enc        f = h · 1[h > threshold]·1[h > 0]        x̂ = f W_dec + b_dec
"""

from pathlib import Path

import torch

from strata.formats import npz
from strata.formats.found import Found, sae_of, take

FILE = "params.npz"
SHAPES = {
    "W_enc": "width latent",
    "b_enc": "latent",
    "W_dec": "latent width",
    "b_dec": "width",
    "threshold": "latent",
}


def read(path: Path) -> Found:
    """Read the file `params.npz`."""
    numbers = {name: array for name, array in npz.read(path).items() if array.dtype.kind in "fiu"}
    arrays = {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for name, array in numbers.items()}
    tensors = take(arrays, SHAPES, path)
    sae = sae_of(
        encoder=tensors["W_enc"].T,
        b_enc=tensors["b_enc"],
        decoder=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        centred=False,
        threshold=tensors["threshold"],
    )
    return Found(sae, "Gemma Scope", "jumprelu", {})
