"""What a decoder may end in: ŷ = g(z W_dec + b_dec), on the training scale, where y has mean 0 and an rms of 1.

tanh stays within ±1 and sigmoid between 0 and 1: what lies outside cannot be reconstructed, and for sigmoid that is
every element below its mean.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # knobs are checked without torch
    from torch import Tensor

Nonlinearity = Literal["identity", "tanh", "sigmoid"]


def bend(kind: Nonlinearity, u: "Tensor") -> "Tensor":
    """g(u)."""
    match kind:
        case "identity":
            return u
        case "tanh":
            return u.tanh()
        case "sigmoid":
            return u.sigmoid()


def pull(kind: Nonlinearity, residual: "Tensor", output: "Tensor") -> "Tensor":
    """``residual`` · g′(u), with ``output`` = g(u): along it u lessens the squared error fastest."""
    match kind:
        case "identity":
            return residual
        case "tanh":
            return residual * (1 - output.square())
        case "sigmoid":
            return residual * output * (1 - output)
