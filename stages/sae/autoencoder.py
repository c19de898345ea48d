"""The autoencoder in training: parameters on the training scale, the sparse forward pass, AuxK.

Training sees y = s (x − μ), with s and μ from the data; :func:`fold` turns the result into an SAE on raw x.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.sae.kernels import Pattern, decode, sampled
from stages.sae.rules import Rule, TopK
from stages.sae.sae import SAE


@dataclass(frozen=True)
class Scale:
    """y = ``factor`` (x − ``mean``). ``variance``: of an element of y over the training rows."""

    factor: float
    mean: Tensor
    variance: float

    def apply(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) * self.factor


class Autoencoder(nn.Module):
    """``encoder`` and ``decoder`` (latent, width), ``b_enc`` (latent,), ``b_dec`` (width,)."""

    def __init__(self, width: int, latents: int, generator: torch.Generator) -> None:
        super().__init__()
        directions = torch.randn(latents, width, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.decoder = nn.Parameter(directions)
        self.encoder = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.b_dec = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def start(self, y: Tensor, k: int) -> None:
        """Scale the encoder so that the error on a first batch is least: c = ⟨y, ŷ⟩ / ⟨ŷ, ŷ⟩ with k latents a row.

        Unit encoder rows overshoot: k random directions are far from orthogonal, and y is added up several times.
        """
        reconstruction, *_ = self(y, TopK(k), torch.float32)
        self.encoder *= ((y * reconstruction).sum() / reconstruction.square().sum()).clamp(1e-3, 1)

    def fast_preactivations(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """h for choosing the active latents, in ``dtype``; no gradient."""
        with torch.no_grad():
            return torch.addmm(self.b_enc.to(dtype), y.to(dtype), self.encoder.to(dtype).T)

    def forward(self, y: Tensor, rule: Rule, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Pattern]:
        """Reconstruction, codes and exact h at the chosen entries, and their pattern."""
        pattern = rule.select(self.fast_preactivations(y, dtype))
        h = sampled(y, self.encoder, pattern) + self.b_enc.index_select(0, pattern.latents)
        codes = rule.codes(h, pattern)
        return decode(codes, self.decoder, pattern) + self.b_dec, codes, h, pattern

    def auxk(self, y: Tensor, residual: Tensor, dead: Tensor, k: int) -> Tensor:
        """How well the ``k`` strongest of the ``dead`` latents explain the residual; gradients to both their sides.

        Σ‖r − z W_dec[dead]‖² / Σ‖r − mean r‖² (Gao et al. 2024, appendix A.2). Dense on the gathered dead rows, which
        are few. Encoder and decoder biases of the living take no part.
        """
        h = torch.addmm(self.b_enc[dead], y, self.encoder[dead].T)
        values, chosen = h.topk(min(k, len(dead)), dim=1)
        z = torch.zeros_like(h).scatter(1, chosen, values.relu())
        error = (residual - z @ self.decoder[dead]).square().sum()
        return error / (residual - residual.mean(0)).square().sum().clamp(min=1e-12)

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Take out the part along each decoder row, which renormalising would undo."""
        grad = self.decoder.grad
        assert grad is not None
        grad -= (grad * self.decoder).sum(1, keepdim=True) * self.decoder

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Unit decoder rows; the encoder is left alone."""
        self.decoder /= self.decoder.norm(dim=1, keepdim=True).clamp(min=1e-12)


@torch.no_grad()
def fold(model: Autoencoder, rule: Rule, scale: Scale) -> SAE:
    """The same function on raw activations, codes in raw units, decoder rows still of unit norm.

    With b = μ + b_dec/s:   h/s = (x − b) W + (b_enc + b_dec W)/s,   θ/s.   A batchtopk rule is folded as topk; its
    threshold is calibrated afterwards.
    """
    b_enc = (model.b_enc + model.encoder @ model.b_dec) / scale.factor
    b_dec = scale.mean + model.b_dec / scale.factor
    parts = (model.encoder.detach().clone(), b_enc, model.decoder.detach().clone(), b_dec)
    if isinstance(rule, TopK):
        return SAE(*parts, k=rule.k)
    return SAE(*parts, threshold=rule.threshold.detach() / scale.factor)
