"""What a step does with the gradients: clip them, take a step of AdamW, keep decoder rows at norm 1.

A decoder row is v/‖v‖, and v takes the step (Salimans & Kingma 2016, "Weight normalization", equation 2 with g = 1).
``model.length`` is ‖v‖. v/‖v‖ does not depend on the part of the gradient along the row, so that part is taken out
first. Every step then makes v longer, and the next step turns the row less: each latent has a learning rate of its own,
which falls as the latent settles. Adam sees the gradient of v/‖v‖. It differs from the gradient of v only in its scale,
on which Adam does not depend.

With a frozen encoder, decoder rows have no norm of 1: codes have the size that the encoder gives them. A frozen decoder
is not touched. Where the model has an anchor, decoder rows are brought back to a cosine of NEAR with it.

On a CPU the time goes into reading and writing. Here each row is gone through twice; with one torch function for each
operation it would be eight times.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils import clip_grad_norm_
from torch.optim.adamw import adamw

from strata.training import adamw_rows
from strata.training.autoencoder import Autoencoder

EPS = 1e-8
NEAR = 0.8  # least cosine of a decoder row with its anchor


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) by torch's fused function, with moments that others can change.

    A `torch.optim.AdamW` would import torch's compiler, which takes two seconds in each run of tune.
    """

    def __init__(self, parameters: Iterable[Tensor], beta1: float, beta2: float, decay: float) -> None:
        self.parameters, self.betas, self.decay, self.lr = list(parameters), (beta1, beta2), decay, 0.0
        self.exp_avg, self.exp_avg_sq = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.step = [torch.zeros((), device=p.device) for p in self.parameters]

    def moments(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return exp_avg, exp_avg_sq and the number of steps of one parameter; they can be changed in place."""
        number = next(i for i, p in enumerate(self.parameters) if p is parameter)
        return self.exp_avg[number], self.exp_avg_sq[number], self.step[number]

    def advance(self) -> None:
        """Take a step with each parameter that has a gradient."""
        every = zip(self.parameters, self.exp_avg, self.exp_avg_sq, self.step, strict=True)
        with_gradient = [(p, p.grad, *moments) for p, *moments in every if p.grad is not None]
        parameters, gradients, means, squares, steps = map(list, zip(*with_gradient, strict=True))
        adamw(
            parameters, gradients, means, squares, [], steps, fused=True, amsgrad=False, maximize=False,
            lr=self.lr, beta1=self.betas[0], beta2=self.betas[1], weight_decay=self.decay, eps=EPS,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Return every moment by name, e.g. ``0.exp_avg``: the number of the parameter, and the moment."""
        names = ("exp_avg", "exp_avg_sq", "step")
        return {f"{number}.{name}": t for name in names for number, t in enumerate(getattr(self, name))}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from the state ``tensors``, which :meth:`state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])


@torch.no_grad()
def update(model: Autoencoder, optimizer: AdamW, clip: float) -> None:
    """Take one step of ``optimizer``, after the gradients of ``model`` are clipped to a joint norm of ``clip``."""
    if model.frozen:
        clip_grad_norm_(model.parameters(), clip)
        optimizer.advance()
        return
    (by_rows if model.decoder.device.type == "cpu" else step_by_step)(model, optimizer, clip)
    if model.anchor is not None:
        bring_near(model.decoder, model.anchor)


def bring_near(decoder: Tensor, anchor: Tensor) -> None:
    """Turn the rows of ``decoder`` that have left their cone around ``anchor`` back to its edge, in place.

    Both are (latent, width), of norm 1. On the edge a row has a cosine of NEAR with its anchor. It keeps its side: it
    stays in the plane of anchor and row.
    """
    cosine = torch.linalg.vecdot(decoder, anchor)
    away = (cosine < NEAR).nonzero().flatten()
    axis = anchor[away]
    aside = normalize(decoder[away] - cosine[away, None] * axis, dim=1)
    decoder[away] = NEAR * axis + (1 - NEAR**2) ** 0.5 * aside


def step_by_step(model: Autoencoder, optimizer: AdamW, clip: float) -> None:
    """Take the step with torch's functions alone, on any device."""
    decoder, gradient = model.decoder, model.decoder.grad
    assert gradient is not None

    # Take out the gradient's part along each decoder row.
    gradient.addcmul_(torch.linalg.vecdot(gradient, decoder)[:, None], decoder, value=-1)
    clip_grad_norm_(model.parameters(), clip)

    # The rows at their full length take the step; then they have norm 1 again.
    decoder.mul_(model.length[:, None])
    optimizer.advance()
    model.length.copy_(decoder.norm(dim=1).clamp(min=1e-12))
    decoder.div_(model.length[:, None])


def by_rows(model: Autoencoder, optimizer: AdamW, clip: float) -> None:
    """Take the same step on a CPU: encoder and decoder by the loops of `adamw_rows.py`, the small rest by torch."""
    matrices = {name: getattr(model, name) for name in ("encoder", "decoder")}
    gradients = {name: _numbers(parameter.grad) for name, parameter in matrices.items()}
    vector_gradients = [p.grad for p in model.parameters() if p.dim() == 1 and p.grad is not None]

    # What clipping multiplies the gradients by. The decoder's are measured without their part along the rows.
    along, squares = adamw_rows.projected(_numbers(model.decoder), gradients["decoder"])
    others = (model.encoder.grad, *vector_gradients)
    norms = [torch.from_numpy(squares).sum().sqrt(), *(t.norm() for t in others if t is not None)]
    scale = min(1.0, clip / (float(torch.stack(norms).norm()) + 1e-6))

    zeros, ones = np.zeros(len(along), np.float32), np.ones(len(along), np.float32)
    for name, parameter in matrices.items():
        exp_avg, exp_avg_sq, step = optimizer.moments(parameter)
        step += 1
        is_decoder = name == "decoder"
        adamw_rows.adamw(
            _numbers(parameter),
            gradients[name],
            _numbers(exp_avg),
            _numbers(exp_avg_sq),
            along if is_decoder else zeros,
            np.float32(scale),
            _knobs(optimizer, float(step)),
            _numbers(model.length) if is_decoder else ones,
            is_decoder,
        )
        parameter.grad = None  # so that the optimizer leaves it alone

    for gradient in vector_gradients:
        gradient.mul_(scale)
    optimizer.advance()


def _numbers(tensor: Tensor | None) -> np.ndarray:
    """Return the numbers of a tensor on the CPU; writing to them changes the tensor, if it is contiguous."""
    assert tensor is not None
    return tensor.detach().contiguous().numpy()


def _knobs(optimizer: AdamW, step: float) -> tuple[np.float32, ...]:
    """Return the ``knobs`` of :func:`adamw_rows.adamw` at ``step``."""
    lr, (beta1, beta2) = optimizer.lr, optimizer.betas
    rate, root, kept = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5, 1 - lr * optimizer.decay
    return tuple(map(np.float32, (rate, root, kept, 1 - beta1, 1 - beta2, EPS)))
