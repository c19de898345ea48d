"""What a step does with the gradients: clipped, AdamW, decoder rows of norm 1 (but for a frozen encoder).

A decoder row is v/‖v‖, and v takes the step (Salimans & Kingma 2016, "Weight normalization", equation 2 with g = 1);
``model.length`` is ‖v‖. The gradient's part along the row, which this ignores, is taken out first, so that every step
makes v longer and the next turns the row less: each latent has a learning rate of its own, which falls as it settles.
Adam sees the gradient of v/‖v‖: its scale, on which Adam does not depend, is all that differs from that of v.

On a CPU, where this is all reading and writing, each row is gone through twice; step by step it would be eight times.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.adamw import adamw

from strata.sae.training import adamw_rows
from strata.sae.training.autoencoder import Autoencoder

EPS = 1e-8


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) by torch's fused function, with moments that others can use.

    Making a `torch.optim.AdamW` would import torch's compiler, two seconds of tune.
    """

    def __init__(self, parameters: Iterable[Tensor], beta1: float, beta2: float, decay: float) -> None:
        self.parameters, self.betas, self.decay, self.lr = list(parameters), (beta1, beta2), decay, 0.0
        self.exp_avg, self.exp_avg_sq = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.step = [torch.zeros((), device=p.device) for p in self.parameters]

    def moments(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """exp_avg, exp_avg_sq and the number of steps of one parameter, to be changed in place."""
        number = next(i for i, p in enumerate(self.parameters) if p is parameter)
        return self.exp_avg[number], self.exp_avg_sq[number], self.step[number]

    def advance(self) -> None:
        """A step for each parameter that has a gradient."""
        each = zip(self.parameters, self.exp_avg, self.exp_avg_sq, self.step, strict=True)
        ready = [(p, p.grad, *moments) for p, *moments in each if p.grad is not None]
        parameters, gradients, means, squares, steps = map(list, zip(*ready, strict=True))
        adamw(
            parameters, gradients, means, squares, [], steps, fused=True, amsgrad=False, maximize=False,
            lr=self.lr, beta1=self.betas[0], beta2=self.betas[1], weight_decay=self.decay, eps=EPS,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Every moment by name."""
        names = ("exp_avg", "exp_avg_sq", "step")
        return {f"{number}.{name}": t for name in names for number, t in enumerate(getattr(self, name))}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from where :meth:`state` was taken."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])


@torch.no_grad()
def update(model: Autoencoder, optimizer: AdamW, clip: float) -> None:
    """One step of ``optimizer``; the gradients of ``model`` together have the norm ``clip`` at the most."""
    if model.frozen:  # codes have the lengths that the encoder gives them, so that decoder rows must not have norm 1
        clip_grad_norm_(model.parameters(), clip)
        optimizer.advance()
        return
    (by_rows if model.decoder.device.type == "cpu" else step_by_step)(model, optimizer, clip)


def step_by_step(model: Autoencoder, optimizer: AdamW, clip: float) -> None:
    """By torch alone."""
    decoder, gradient = model.decoder, model.decoder.grad
    assert gradient is not None
    gradient.addcmul_(torch.linalg.vecdot(gradient, decoder)[:, None], decoder, value=-1)
    clip_grad_norm_(model.parameters(), clip)
    decoder.mul_(model.length[:, None])
    optimizer.advance()
    model.length.copy_(decoder.norm(dim=1).clamp(min=1e-12))
    decoder.div_(model.length[:, None])


def by_rows(model: Autoencoder, optimizer: AdamW, clip: float) -> None:
    """The same, encoder and decoder by the loops of `adamw_rows.py`; what is left is small and takes torch's way."""
    large = {name: getattr(model, name) for name in ("encoder", "decoder")}
    gradients = {name: _numbers(parameter.grad) for name, parameter in large.items()}
    along, squares = adamw_rows.projected(_numbers(model.decoder), gradients["decoder"])
    small = [p.grad for p in model.parameters() if p.dim() == 1 and p.grad is not None]
    norms = [torch.from_numpy(squares).sum().sqrt(), *(t.norm() for t in (model.encoder.grad, *small) if t is not None)]
    scale = min(1.0, clip / (float(torch.stack(norms).norm()) + 1e-6))
    nothing, ones = np.zeros(len(along), np.float32), np.ones(len(along), np.float32)
    for name, parameter in large.items():
        exp_avg, exp_avg_sq, step = optimizer.moments(parameter)
        step += 1
        part, lengths = (along, _numbers(model.length)) if name == "decoder" else (nothing, ones)
        arrays = (_numbers(parameter), gradients[name], _numbers(exp_avg), _numbers(exp_avg_sq))
        adamw_rows.adamw(*arrays, part, np.float32(scale), _knobs(optimizer, float(step)), lengths, name == "decoder")
        parameter.grad = None  # so that the optimizer leaves it alone
    for gradient in small:
        gradient.mul_(scale)
    optimizer.advance()


def _numbers(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().contiguous().numpy()


def _knobs(optimizer: AdamW, step: float) -> tuple[np.float32, ...]:
    lr, (beta1, beta2) = optimizer.lr, optimizer.betas
    knobs = (lr / (1 - beta1**step), (1 - beta2**step) ** -0.5, 1 - lr * optimizer.decay)
    return tuple(map(np.float32, (*knobs, 1 - beta1, 1 - beta2, EPS)))
