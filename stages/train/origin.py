"""What the `cfg.json` of an SAE says of its origin: of which model, place and text it is, and how it was trained."""

from typing import Any

from strata.rows.shards import Activations, Contexts
from strata.training.knobs import Train


def metadata(
    activations: Activations, contexts: Contexts, knobs: Train, l0: float | None, given: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what `cfg.json` tells other tools about where the SAE belongs. Where SAELens has a name, it is used.

    ``l0``: its active latents on a held-out row, in the mean. ``given``: the metadata of an imported SAE, which are
    passed through unchanged, and whose k in training is not known; None for an SAE that was trained here.
    """
    meta = activations.meta
    origin = (given or {}).get("imported_from")

    # First what SAELens and its kin read; under "strata" what only Strata asks for; at the end where an import is from.
    return {
        "model_name": meta["model"]["name"],
        "hook_name": activations.hook_name,
        "context_size": contexts.meta["context"],
        "prepend_bos": activations.of_tokens,
        "exclude_special_tokens": True,
        "training_architecture": knobs.rule,
        **({"training_architecture_details": {"k": knobs.k}} if given is None else {}),
        "l0": l0,
        "strata": {
            "model_fingerprint": meta["model"]["fingerprint"],
            "corpus": meta["corpus"],
            "forward": meta["forward"],
            **({"normalize": meta["normalize"]} if "normalize" in meta else {}),
            "scale": activations.scale,
            "median_norm": activations.median_norm,
            **({"given": given} if given is not None else {}),
        },
        **({"imported_from": origin} if origin else {}),
    }
