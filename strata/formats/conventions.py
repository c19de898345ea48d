"""What other tools' L1 weights are here. Their losses differ by seven orders of magnitude in how they are averaged."""

from typing import Literal

Convention = Literal["mean", "batch_sum", "token_sum"]


def l1_coefficient(weight: float, convention: Convention, batch: int, width: int, latents: int) -> float:
    """``train.l1_coefficient`` for the ``weight`` of a loss with another way of averaging.

    Ours is λ in Σ_width err² + λ Σ_latents |z| for a token, on activations of mean ‖x‖² = width (rescale those of the
    other tool alike, or λ changes with their scale). The reconstruction term of the others is the mean over batch and
    width; their L1 term is

        mean        w · mean over batch and latents of |z|    λ = w · width / latents
        batch_sum   w · Σ over batch and latents of |z|       λ = w · batch · width
        token_sum   w · Σ over latents, mean over the batch, and err² summed over width too    λ = w
    """
    return weight * {"mean": width / latents, "batch_sum": float(batch * width), "token_sum": 1.0}[convention]
