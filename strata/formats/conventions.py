"""L1 weights of other tools -> ours. Their losses are averaged in ways that differ by seven orders of magnitude."""

from typing import Literal

Convention = Literal["mean", "batch_sum", "token_sum"]


def l1_coefficient(weight: float, convention: Convention, batch: int, width: int, latents: int) -> float:
    """Convert the L1 ``weight`` of a loss with another way of averaging to ``train.l1_coefficient``.

    Ours is λ in Σ_width err² + λ Σ_latents |z| for a token, on activations of mean ‖x‖² = width. The other tool's
    activations must have the same scale, because λ changes with it. The reconstruction term of the other losses is the
    mean over batch and width (unless said otherwise), and their L1 term is

        mean        w · mean over batch and latents of |z|    λ = w · width / latents
        batch_sum   w · Σ over batch and latents of |z|       λ = w · batch · width
        token_sum   w · Σ over latents, mean over the batch, and err² summed over width too    λ = w
    """
    return weight * {"mean": width / latents, "batch_sum": float(batch * width), "token_sum": 1.0}[convention]
