"""The functions g that a decoder may end in: ŷ = g(z W_dec + b_dec), on the training scale.

There y has mean 0 and a root mean square of 1. tanh stays between −1 and 1, sigmoid between 0 and 1. They cannot
reconstruct what lies outside; for sigmoid that is every element below its mean.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # knobs are checked without torch
    from torch import Tensor

Nonlinearity = Literal["identity", "tanh", "sigmoid"]


def bend(kind: Nonlinearity, u: "Tensor") -> "Tensor":
    """Return g(u)."""
    match kind:
        case "identity":
            return u
        case "tanh":
            return u.tanh()
        case "sigmoid":
            return u.sigmoid()


def pull(kind: Nonlinearity, residual: "Tensor", output: "Tensor") -> "Tensor":
    """Return ``residual`` · g′(u), where ``output`` = g(u): a step of u along it lowers the squared error fastest."""
    match kind:
        case "identity":
            return residual
        case "tanh":
            return residual * (1 - output.square())
        case "sigmoid":
            return residual * output * (1 - output)
