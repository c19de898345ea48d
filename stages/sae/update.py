"""What a step does with the gradients: clipped, AdamW, decoder rows of norm 1.

The part of the decoder's gradient along its rows, which renormalising would undo, is taken out first. On a CPU, where
this is all reading and writing, each row is gone through twice; step by step it would be eight times.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from stages.sae import cpu
from stages.sae.autoencoder import Autoencoder


@torch.no_grad()
def update(model: Autoencoder, optimizer: torch.optim.AdamW, clip: float) -> None:
    """One step of ``optimizer``; the gradients of ``model`` together have the norm ``clip`` at the most."""
    (by_rows if model.decoder.device.type == "cpu" else step_by_step)(model, optimizer, clip)


def step_by_step(model: Autoencoder, optimizer: torch.optim.AdamW, clip: float) -> None:
    """By torch alone."""
    decoder, gradient = model.decoder, model.decoder.grad
    assert gradient is not None
    gradient.addcmul_(torch.linalg.vecdot(gradient, decoder)[:, None], decoder, value=-1)
    clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    decoder.div_(decoder.norm(dim=1, keepdim=True).clamp(min=1e-12))


def by_rows(model: Autoencoder, optimizer: torch.optim.AdamW, clip: float) -> None:
    """The same, encoder and decoder by the loops of `cpu.py`; what is left is small and takes torch's way."""
    large = {name: getattr(model, name) for name in ("encoder", "decoder")}
    gradients = {name: _numbers(parameter.grad) for name, parameter in large.items()}
    along, squares = cpu.projected(_numbers(model.decoder), gradients["decoder"])
    small = [p.grad for p in model.parameters() if p.dim() == 1 and p.grad is not None]
    norms = [torch.from_numpy(squares).sum().sqrt(), *(t.norm() for t in (model.encoder.grad, *small) if t is not None)]
    scale = min(1.0, clip / (float(torch.stack(norms).norm()) + 1e-6))
    nothing = np.zeros(len(along), np.float32)
    for name, parameter in large.items():
        state, unit = _state(optimizer, parameter), name == "decoder"
        means, moments = _numbers(state["exp_avg"]), _numbers(state["exp_avg_sq"])
        knobs = _knobs(optimizer, float(state["step"]))
        part = along if unit else nothing
        cpu.adamw(_numbers(parameter), gradients[name], means, moments, part, np.float32(scale), knobs, unit)
        parameter.grad = None  # so that the optimizer leaves it alone
    for gradient in small:
        gradient.mul_(scale)
    optimizer.step()


def _numbers(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().contiguous().numpy()


def _state(optimizer: torch.optim.AdamW, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of ``parameter``, a step on."""
    state = optimizer.state[parameter]
    if not state:
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        state |= {"step": torch.zeros(()), **zeros}
    state["step"] += 1
    return state


def _knobs(optimizer: torch.optim.AdamW, step: float) -> tuple[np.float32, ...]:
    group = optimizer.param_groups[0]
    lr, (beta1, beta2) = group["lr"], group["betas"]
    knobs = (lr / (1 - beta1**step), (1 - beta2**step) ** -0.5, 1 - lr * group["weight_decay"])
    return tuple(map(np.float32, (*knobs, 1 - beta1, 1 - beta2, group["eps"])))
