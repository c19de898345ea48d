"""A description of an SAE in one line."""

from strata.formats.found import Found
from strata.sae.sae import SAE


def line(found: Found) -> str:
    """Describe an SAE that was read: its tool, its kind, its size, and what decides which latents are active."""
    sae = found.sae
    return "; ".join(
        [f"{found.format} ({found.kind}), {sae.latents} latents of width {sae.width}, {rule(sae)}", *found.notes]
    )


def rule(sae: SAE) -> str:
    """Describe what decides which latents are active: k, or the thresholds."""
    if sae.k is not None:
        return f"k = {sae.k}"
    assert sae.threshold is not None
    low, high = float(sae.threshold.clamp(min=0).min()), float(sae.threshold.clamp(min=0).max())
    if high == 0:
        return "no threshold"
    return f"threshold {low:.4g}" if low == high else f"thresholds {low:.4g} to {high:.4g}"
