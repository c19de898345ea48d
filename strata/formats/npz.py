"""Write and read an SAE as plain numpy arrays, for programs without torch.

`encoder.npz` holds W (latent, width), b (latent,), and either threshold (latent,) or k. `decoder.npz` holds W
(latent, width) and b (width,). Both hold metadata, which is JSON. b_dec is folded into the encoder's b, so that

h = x Wᵀ + b        f = h · 1[h > threshold]   or   the k largest of h that are above 0        x̂ = f W + b

An encoder without threshold and k, as Spindle writes it, is a ReLU.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strata.run.door import BadInput
from strata.run.files import replacing
from strata.sae.sae import SAE
from strata.tables.arrays import read

ENCODER, DECODER = "encoder.npz", "decoder.npz"


def save(folder: Path, sae: SAE, metadata: dict[str, Any]) -> None:
    """Write both files. Raises BadInput for an SAE that these arrays cannot express."""
    if sae.groups is not None:
        raise BadInput("its latents are sums of parts, which no encoder matrix can say; merge with merge.encoder: mean")
    if sae.mean is not None:
        raise BadInput(f"its decoder ends in {sae.decoder_activation}, which no decoder matrix can say")

    metadata_text = np.array(json.dumps(metadata))
    rule = {"k": np.array(sae.k)} if sae.k is not None else {"threshold": _array(sae.threshold)}
    folded = sae.b_enc.double() - sae.encoder.double() @ sae.b_dec.double()
    _write(folder / ENCODER, W=_array(sae.encoder), b=_array(folded), metadata=metadata_text, **rule)
    _write(folder / DECODER, W=_array(sae.decoder), b=_array(sae.b_dec), metadata=metadata_text)


def encoder(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read W (latent, width) and b (latent,) of an `encoder.npz`, for which h = x Wᵀ + b."""
    arrays = read(path)
    return _tensor(_matrix(path, arrays)), _tensor(arrays["b"])


def load(path: Path) -> tuple[SAE, dict[str, Any]]:
    """Read an SAE from the encoder at ``path`` and the decoder beside it.

    Where there is no decoder, the encoder's own rows decode. The second value returned has the metadata that was saved
    under the key ``metadata``, as `cfg.json` has it. Raises BadInput for arrays that do not make an SAE.
    """
    arrays = read(path)
    w, b = _matrix(path, arrays), arrays["b"]
    latents, width = w.shape

    decoder_path = path.with_name(DECODER)
    decoder = read(decoder_path) if decoder_path.exists() else {"W": w, "b": np.zeros(width)}
    _check_numbers(decoder_path, decoder, ("W", "b"))
    if decoder.keys() < {"W", "b"} or decoder["W"].shape != w.shape or decoder["b"].shape != (width,):
        raise BadInput(f"{decoder_path} holds {_shapes(decoder)}, but {path.name} is {w.shape}")

    k, threshold = arrays.get("k"), arrays.get("threshold", np.zeros(latents))
    k_is_valid = k is None or (k.shape == () and k.dtype.kind in "iu" and 0 < int(k) <= latents)
    _check_numbers(path, arrays, ("threshold",))
    if threshold.shape != (latents,) or not k_is_valid:
        raise BadInput(f"{path} holds {_shapes(arrays)}: threshold must be (latent,), k a number up to {latents}")

    # The SAE reads x − b_dec, so that its bias is b + W b_dec.
    encoder_rows, b_dec = _tensor(w), _tensor(decoder["b"])
    sae = SAE(
        encoder_rows,
        (_tensor(b).double() + encoder_rows.double() @ b_dec.double()).float(),
        _tensor(decoder["W"]),
        b_dec,
        k=None if k is None else int(k),
        threshold=None if k is not None else _tensor(threshold),
    )
    return sae, {"metadata": _metadata(path, arrays.get("metadata"))}


def _metadata(path: Path, text: NDArray[Any] | None) -> dict[str, Any]:
    """Parse the array ``metadata`` of ``path``, a text with a JSON object; it may be missing."""
    if text is None:
        return {}
    try:
        metadata = json.loads(str(text)) if text.shape == () and text.dtype.kind == "U" else None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: the array 'metadata' is not JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise BadInput(f"{path}: the array 'metadata' must be a text, a JSON object")
    return metadata


def _matrix(path: Path, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Return W (latent, width), after checking that it fits b and that both are finite numbers."""
    w, b = (arrays.get(name) for name in ("W", "b"))
    if w is None or b is None or w.ndim != 2 or b.shape != w.shape[:1] or not w.size:
        raise BadInput(f"{path} must hold W (latent, width) and b (latent,); it holds {_shapes(arrays)}")
    _check_numbers(path, arrays, ("W", "b"))
    return w


def _check_numbers(path: Path, arrays: dict[str, NDArray[Any]], names: tuple[str, ...]) -> None:
    """Refuse texts, complex numbers, NaN, infinity, and numbers that are too large for float32."""
    for name in names:
        array = arrays.get(name)
        if array is None:
            continue
        if array.dtype.kind not in "fiu":
            raise BadInput(f"{path}: the array {name!r} is of {array.dtype}; real numbers are needed")
        if not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise BadInput(f"{path}: the array {name!r} holds NaN, infinity, or numbers beyond float32")


def _write(path: Path, **arrays: NDArray[Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _shapes(arrays: dict[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _array(tensor: torch.Tensor | None) -> NDArray[Any]:
    assert tensor is not None
    return tensor.float().cpu().numpy()


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
