"""The autoencoder in training: parameters on the training scale, the sparse forward pass, AuxK.

Training sees y = s (x − μ), with s and μ from the data; :func:`fold` turns the result into an SAE on raw x.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from strata.sae.engine.dispatch import decode, sampled
from strata.sae.engine.nonlinearity import Nonlinearity, pull
from strata.sae.engine.preactivations import Preactivations
from strata.sae.knobs import Init
from strata.sae.rules.base import Pass, Rule
from strata.sae.rules.errors import squared_error
from strata.sae.rules.topk import TopK
from strata.sae.sae import SAE

LENGTH = 0.1  # of the rows behind the decoder's at first, as SAELens's decoder_init_norm: short, so that they turn far


@dataclass(frozen=True)
class Scale:
    """y = ``factor`` (x − ``mean``). ``variance``: of an element of y over the training rows."""

    factor: float
    mean: Tensor
    variance: float

    def apply(self, x: Tensor) -> Tensor:
        return x.to(torch.float32, copy=True).sub_(self.mean).mul_(self.factor)


class Autoencoder(nn.Module):
    """``encoder`` and ``decoder`` (latent, width), ``b_enc`` (latent,), ``b_dec`` (width,).

    Decoder rows have norm 1 and a random direction (``kaiming``: independent; ``orthogonal``: so within each ``width``
    of them); the encoder begins as the decoder transposed. ``data`` takes the first batch's rows in :meth:`start`.
    Reconstructions are g(z W_dec + b_dec), g the ``decoder_activation``.
    """

    encoder: nn.Parameter
    decoder: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter

    def __init__(
        self,
        width: int,
        latents: int,
        generator: torch.Generator,
        init: Init = "kaiming",
        decoder_activation: Nonlinearity = "identity",
    ) -> None:
        super().__init__()
        self.from_data, self.given = init == "data", False
        self.decoder_activation: Nonlinearity = decoder_activation
        directions = torch.randn(latents, width, generator=generator)
        if init == "orthogonal":
            directions = torch.cat([torch.linalg.qr(part.T).Q.T for part in directions.split(width)])
        directions = normalize(directions, dim=1)
        self.decoder = nn.Parameter(directions)
        self.encoder = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.b_dec = nn.Parameter(torch.zeros(width))
        self.register_buffer("length", torch.full((latents,), LENGTH))
        self.length: Tensor  # of the rows behind the decoder's; see update.py
        self.register_buffer("balance", torch.ones(width))
        self.balance: Tensor  # of columns, for the cheap product

    @torch.no_grad()
    def take(self, encoder: Tensor, bias: Tensor, frozen: bool) -> None:
        """Begin with this encoder (latent, width) and bias (latent,), on the training scale, and decode by its rows.

        ``frozen``: both stay as they are, to the bit. Decoder rows then take the length that its codes need.
        """
        self.given, self.from_data = True, False
        self.encoder.copy_(encoder)
        self.b_enc.copy_(bias)
        self.decoder.copy_(normalize(encoder, dim=1))
        for parameter in (self.encoder, self.b_enc):
            parameter.requires_grad_(not frozen)

    @property
    def frozen(self) -> bool:
        return not self.encoder.requires_grad

    @torch.no_grad()
    def start(self, y: Tensor, k: int, generator: torch.Generator) -> None:
        """Scale the encoder so that the error on a first batch is least: c = ⟨y, ŷ⟩ / ⟨ŷ, ŷ⟩ with k latents a row.

        ŷ is without g here. Unit encoder rows overshoot: k random directions are far from orthogonal, and y is added
        up several times. A given encoder stays as it is.
        """
        if self.from_data:
            rows = y[torch.randint(len(y), (len(self.decoder),), generator=generator, device=y.device)]
            noise = torch.randn(rows.shape, generator=generator, device=y.device) * rows.std() / 10
            self.decoder.copy_(normalize(rows + noise, dim=1))  # with the noise, because rows come twice in a large F
            self.encoder.copy_(self.decoder)
        self.balance.copy_(y.square().mean(0).sqrt().sqrt().clamp(min=1e-3))
        if self.given:
            return
        run = self(y, TopK(k), generator)
        output = decode(run.codes, self.decoder, run.pattern)
        self.encoder.mul_(((y * output).sum() / output.square().sum()).clamp(1e-3, 1))

    def forward(self, y: Tensor, rule: Rule, generator: torch.Generator) -> Pass:
        """Choose latents, and compute at those alone."""
        pattern, known = rule.select(Preactivations(y, self.encoder, self.b_enc, self.balance))
        h = sampled(y, self.encoder, self.b_enc, pattern, known)
        codes = rule.codes(h, pattern, generator)
        ends, kind = rule.ends(len(self.decoder)), self.decoder_activation
        error, residual = squared_error(codes, self.decoder, self.b_dec, y, pattern, ends, kind)
        return Pass(y, pattern, h, codes, error, residual)

    def unexplained(self, run: Pass) -> Tensor:
        """r, what the dead latents are to explain: y − ŷ, times g′ where the decoder ends in g."""
        return pull(self.decoder_activation, run.residual, run.y - run.residual)

    def auxk(self, y: Tensor, residual: Tensor, dead: Tensor, k: int) -> Tensor:
        """How well the ``k`` strongest of the ``dead`` latents explain the residual; gradients to both their sides.

        Σ‖r − z W_dec[dead]‖² / Σ‖r − mean r‖² (Gao et al. 2024, appendix A.2). Dense on the gathered dead rows, which
        are few. Encoder and decoder biases of the living take no part.
        """
        encoder, bias, decoder = (p.index_select(0, dead) for p in (self.encoder, self.b_enc, self.decoder))
        h = torch.addmm(bias, y, encoder.T)
        values, chosen = h.topk(min(k, len(dead)), dim=1)
        z = torch.zeros_like(h).scatter(1, chosen, values.relu())
        error = (residual - z @ decoder).square().sum()
        return error / (residual - residual.mean(0)).square().sum().clamp(min=1e-12)

    @torch.no_grad()
    def wake(self, dead: Tensor, rise: float) -> None:
        """Raise the biases of ``dead``, so that in the end each fires where it comes closest to, and learns there.

        What Wang et al. 2024, "Auxiliary-loss-free load balancing", do for experts that get too few tokens.
        """
        self.b_enc.index_add_(0, dead, torch.full(dead.shape, rise, device=dead.device))

    @torch.no_grad()
    def resample(self, run: Pass, dead: Tensor, generator: torch.Generator) -> None:
        """Give each of ``dead`` the direction of a badly reconstructed row, drawn by its squared error.

        Encoder rows get a fifth of the mean norm of the others, biases 0 (Bricken et al. 2023, appendix).
        """
        weight = run.residual.square().sum(1).square()
        rows = torch.multinomial(weight, len(dead), replacement=True, generator=generator)
        directions = normalize(run.y[rows], dim=1)
        self.decoder[dead], self.length[dead] = directions, LENGTH
        self.encoder[dead] = directions * self.encoder.norm(dim=1).mean() / 5
        self.b_enc[dead] = 0.0


@torch.no_grad()
def fold(model: Autoencoder, rule: Rule, scale: Scale) -> SAE:
    """The same function on raw activations, codes in raw units, decoder rows as long as they were.

    With b = μ + b_dec/s:   h/s = (x − b) W + (b_enc + b_dec W)/s,   θ/s. A g other than the identity keeps s and μ:
    x̂ = μ + g(s (f W_dec + b − μ)) / s.
    """
    encoder, b_enc, threshold = rule.settled(model)
    bent = model.decoder_activation != "identity"
    return SAE(
        encoder=encoder.detach().clone(),
        b_enc=(b_enc + encoder @ model.b_dec) / scale.factor,
        decoder=model.decoder.detach().clone(),
        b_dec=scale.mean + model.b_dec / scale.factor,
        k=rule.k if threshold is None else None,
        threshold=None if threshold is None else threshold.detach() / scale.factor,
        decoder_activation=model.decoder_activation,
        scale=scale.factor if bent else 1.0,
        mean=scale.mean if bent else None,
    )
