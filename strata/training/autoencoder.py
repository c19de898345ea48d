"""The autoencoder in training: parameters on the training scale, the sparse forward pass, AuxK.

Training sees y = s (x − μ), with s and μ from the data. :func:`fold` turns the result into an SAE on raw x.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from strata.device.machine import CPU
from strata.measure.quality import OUTLIER
from strata.rows.batches import Rows
from strata.rows.spread import spread
from strata.sae.engine.dispatch import decode, preactivations_at
from strata.sae.engine.nonlinearity import Nonlinearity, pull
from strata.sae.engine.preactivations import Preactivations
from strata.sae.sae import SAE
from strata.training.knobs import Held, Init
from strata.training.rules.base import Pass, Rule
from strata.training.rules.errors import squared_error
from strata.training.rules.topk import TopK

LENGTH = 0.1  # ‖v‖ at the start (see update.py), as SAELens's decoder_init_norm; a short v turns far in a step


@dataclass(frozen=True)
class Scale:
    """The training scale y = ``factor`` (x − ``mean``).

    ``mean``: (width,). ``variance``: the mean variance of an element of y over the training rows.
    """

    factor: float
    mean: Tensor
    variance: float

    @classmethod
    def of(cls, activations: Rows, device: torch.device = CPU, inliers: bool = False) -> "Scale":
        """Measure the training scale of some activations, with the mean on ``device``.

        s is the ``scale`` of :class:`strata.rows.spread.Spread`. It and the mean are those of all training rows, or,
        with ``inliers``, of the training rows that are no outliers.
        """
        s, mean = activations.scale, activations.mean
        if inliers:
            largest, split = OUTLIER * activations.median_norm, activations.split("train")
            inlier_spread = spread(
                lambda: (x[x.float().norm(dim=1) <= largest] for x in activations.blocks(*split)), "inliers"
            )
            s, mean = inlier_spread.scale, inlier_spread.mean.float()

        # s makes the mean of ‖s x‖² the width, so that y has this variance. For rows far from 0, s makes the mean of
        # ‖s (x − mean)‖² the width: then this is below 0, and the variance is 1.
        variance = 1 - s**2 * float(mean.double().square().sum()) / activations.width
        return cls(s, mean.to(device), variance if variance > 0 else 1.0)

    def apply(self, x: Tensor) -> Tensor:
        """Return y in float32 for raw activations ``x`` (row, width)."""
        return x.to(torch.float32, copy=True).sub_(self.mean).mul_(self.factor)


class Autoencoder(nn.Module):
    """The parameters: ``encoder`` and ``decoder`` (latent, width), ``b_enc`` (latent,), ``b_dec`` (width,).

    Decoder rows have norm 1 and at first a random direction. With ``init`` kaiming, directions are independent; with
    orthogonal, each ``width`` of them in turn are orthogonal to each other; with data, :meth:`start` takes rows of the
    first batch. The encoder begins as the decoder transposed.

    The reconstruction is ŷ = g(z W_dec + b_dec), with g the ``decoder_activation``.
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
        self.length: Tensor  # (latent,) ‖v‖, where a decoder row is v/‖v‖; see update.py
        self.register_buffer("balance", torch.ones(width))
        self.balance: Tensor  # (width,) what the cheap product divides columns of y by; see preactivations.py
        self.register_buffer("anchor", None)
        self.anchor: Tensor | None  # (latent, width) directions that decoder rows stay near; see hold

    @torch.no_grad()
    def take(self, encoder: Tensor, bias: Tensor, frozen: bool) -> None:
        """Begin with this ``encoder`` (latent, width) and ``bias`` (latent,), which are on the training scale.

        Its rows, at norm 1, become the decoder's. If ``frozen``, encoder and bias stay as they are, to the bit, and
        decoder rows take the length that the codes need.
        """
        self.given, self.from_data = True, False
        self.encoder.copy_(encoder)
        self.b_enc.copy_(bias)
        self.decoder.copy_(normalize(encoder, dim=1))
        for parameter in (self.encoder, self.b_enc):
            parameter.requires_grad_(not frozen)

    @torch.no_grad()
    def hold(self, part: Held) -> None:
        """Hold ``part`` at its random start, so that a training shows what can be had without learning it.

        encoder: its rows stay as they are, but for the one factor of :meth:`start`, and decoder rows take the length
        that the codes need. decoder: its rows stay as they are, to the bit. near_decoder: each decoder row keeps a
        cosine of at least NEAR (update.py) with its start. Biases and thresholds learn. "Sanity checks for sparse
        autoencoders", arXiv 2602.14111, found that such SAEs match trained ones.
        """
        if part == "near_decoder":
            self.anchor = self.decoder.detach().clone()
        else:
            getattr(self, part).requires_grad_(False)

    @property
    def frozen(self) -> bool:
        """Whether encoder or decoder does not learn."""
        return not (self.encoder.requires_grad and self.decoder.requires_grad)

    @torch.no_grad()
    def start(self, y: Tensor, k: int, generator: torch.Generator) -> None:
        """Fit the encoder to a first batch ``y`` (row, width): multiply it by c = ⟨y, ŷ⟩ / ⟨ŷ, ŷ⟩.

        ŷ is the reconstruction from the top ``k`` latents of each row, without g; with this c the error is least.
        Encoder rows of norm 1 would overshoot: k random directions are far from orthogonal, so that parts of y would
        be added up several times. An encoder that the user gave stays as it is.
        """
        if self.from_data:
            rows = y[torch.randint(len(y), (len(self.decoder),), generator=generator, device=y.device)]
            # The noise tells latents apart: where there are many of them, rows are drawn twice.
            noise = torch.randn(rows.shape, generator=generator, device=y.device) * rows.std() / 10
            self.decoder.copy_(normalize(rows + noise, dim=1))
            self.encoder.copy_(self.decoder)

        # The square root of each column's root mean square: SmoothQuant with α = 1/2.
        self.balance.copy_(y.square().mean(0).sqrt().sqrt().clamp(min=1e-3))

        if self.given:
            return
        run = self(y, TopK(k), generator)
        output = decode(run.codes, self.decoder, run.pattern)
        self.encoder.mul_(((y * output).sum() / output.square().sum()).clamp(1e-3, 1))

    def forward(self, y: Tensor, rule: Rule, generator: torch.Generator) -> Pass:
        """Choose latents for ``y`` (row, width) by ``rule``, and compute codes and error from the chosen ones alone."""
        pattern, known = rule.select(Preactivations(y, self.encoder, self.b_enc, self.balance))
        h = preactivations_at(y, self.encoder, self.b_enc, pattern, known)
        codes = rule.codes(h, pattern, generator)

        ends, kind = rule.ends(len(self.decoder)), self.decoder_activation
        error, residual = squared_error(codes, self.decoder, self.b_dec, y, pattern, ends, kind)
        return Pass(y, pattern, h, codes, error, residual)

    def unexplained(self, run: Pass) -> Tensor:
        """Return r, (row, width), which the dead latents have to explain: y − ŷ, times g′ if the decoder ends in g."""
        return pull(self.decoder_activation, run.residual, run.y - run.residual)

    def auxk(self, y: Tensor, residual: Tensor, dead: Tensor, k: int) -> Tensor:
        """Return how badly the ``k`` strongest of the ``dead`` latents explain the ``residual`` r.

        Σ‖r − z W_dec[dead]‖² / Σ‖r − mean r‖² (Gao et al. 2024, appendix A.2). The gradients reach the dead latents'
        encoder rows, biases and decoder rows, and no others. Products are dense on the dead rows, which are few.
        """
        encoder, bias, decoder = (p.index_select(0, dead) for p in (self.encoder, self.b_enc, self.decoder))
        h = torch.addmm(bias, y, encoder.T)  # (row, dead latent)
        values, chosen = h.topk(min(k, len(dead)), dim=1)
        z = torch.zeros_like(h).scatter(1, chosen, values.relu())
        error = (residual - z @ decoder).square().sum()
        return error / (residual - residual.mean(0)).square().sum().clamp(min=1e-12)

    @torch.no_grad()
    def wake(self, dead: Tensor, rise: float) -> None:
        """Add ``rise`` to the biases of the ``dead`` latents.

        In the end each of them fires on the rows that it comes closest to, and learns there. Wang et al. 2024,
        "Auxiliary-loss-free load balancing", do the same for experts that get too few tokens.
        """
        self.b_enc.index_add_(0, dead, torch.full(dead.shape, rise, device=dead.device))

    @torch.no_grad()
    def resample(self, run: Pass, dead: Tensor, generator: torch.Generator) -> None:
        """Give each of the ``dead`` latents the direction of a row that is reconstructed badly.

        A row is drawn with a probability proportional to the square of its loss. Encoder rows get a fifth of the mean
        norm of all encoder rows, biases become 0 (Bricken et al. 2023, appendix).
        """
        weight = run.residual.square().sum(1).square()  # (row,) ‖y − ŷ‖⁴
        rows = torch.multinomial(weight, len(dead), replacement=True, generator=generator)
        directions = normalize(run.y[rows], dim=1)

        self.decoder[dead], self.length[dead] = directions, LENGTH
        self.encoder[dead] = directions * self.encoder.norm(dim=1).mean() / 5
        self.b_enc[dead] = 0.0


@torch.no_grad()
def fold(model: Autoencoder, rule: Rule, scale: Scale) -> SAE:
    """Turn a model on the training scale into the SAE that is the same function of raw activations.

    Codes are then in raw units, and decoder rows keep their norm. With b = μ + b_dec/s:

        h/s = (x − b) W + (b_enc + b_dec W)/s,   threshold θ/s.

    An SAE whose g is not the identity keeps s and μ: x̂ = μ + g(s (f W_dec + b − μ)) / s.
    """
    encoder, b_enc, threshold = rule.settled(model)
    keeps_scale = model.decoder_activation != "identity"
    return SAE(
        encoder=encoder.detach().clone(),
        b_enc=(b_enc + encoder @ model.b_dec) / scale.factor,
        decoder=model.decoder.detach().clone(),
        b_dec=scale.mean + model.b_dec / scale.factor,
        k=rule.k if threshold is None else None,
        threshold=None if threshold is None else threshold.detach() / scale.factor,
        decoder_activation=model.decoder_activation,
        scale=scale.factor if keeps_scale else 1.0,
        mean=scale.mean if keeps_scale else None,
    )
