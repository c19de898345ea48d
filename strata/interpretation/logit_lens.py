"""Find the tokens that a latent's direction promotes and suppresses, through the model's own last steps.

    logits of a direction d:   W_U (g ⊙ d)        LayerNorm first subtracts the mean of d

W_U is the unembedding and g the scale of the model's final norm. The norm also divides by the size of its input. That
is left out: it is the same positive number for all tokens of the vocabulary, so it does not change their order. The
bias of the head is left out, too, since it does not depend on d.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strata.lm.devices import gathered, weight_of
from strata.lm.model import LanguageModel, final_states

TOKENS = 8192  # tokens of the vocabulary that are read at a time: 8,192 × 640 × 4 bytes = 21 MB
LATENTS = 256  # latents whose logits on these tokens are in memory at a time: 256 × 8,192 × 4 bytes = 8 MB
GROUP = 64  # tokens of a group, see `_largest`


class Lens(NamedTuple):
    """The lens on the directions of some latents.

    ``promoted`` and ``suppressed``: (latent, top) tokens, strongest first, with their logits in ``…_values``.
    ``skew`` and ``kurtosis`` (excess): (latent,) of the logits over the vocabulary; NaN where they are all equal.
    """

    promoted: NDArray[np.int32]
    promoted_values: NDArray[np.float32]
    suppressed: NDArray[np.int32]
    suppressed_values: NDArray[np.float32]
    skew: NDArray[np.float64]
    kurtosis: NDArray[np.float64]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns of a table with one row for each latent, side and rank."""
        latents, top = self.promoted.shape
        return {
            "latent": np.repeat(np.arange(latents, dtype=np.int32), 2 * top),
            "rank": np.tile(np.arange(top, dtype=np.int32), 2 * latents),
            "side": np.tile(np.repeat(np.array(["promoted", "suppressed"], object), top), latents),
            "token": np.stack([self.promoted, self.suppressed], 1).ravel(),
            "value": np.stack([self.promoted_values, self.suppressed_values], 1).ravel(),
        }


@torch.inference_mode()
def lens(decoder: Tensor, lm: LanguageModel, top: int) -> Lens | None:
    """Compute the lens on every direction of ``decoder`` (latent, width), with the ``top`` tokens of each side.

    None if the last steps of the model are not understood: its head is no linear layer of the right width, or no single
    final norm is found. Memory holds a block of the vocabulary and some numbers a latent, never latents × vocabulary.
    """
    head = lm.model.get_output_embeddings()
    norm = final_norm(lm)
    if norm is None or not isinstance(head, nn.Linear) or head.in_features != decoder.shape[1]:
        return None

    directions = through(norm, decoder.to(lm.device, torch.float32))
    # Rows behind the tokenizer's last one only fill up the matrix.
    unembedding = weight_of(head).to(lm.device)[: len(lm.tokenizer)]
    return _read(directions, unembedding, min(top, len(unembedding)))


def final_norm(lm: LanguageModel) -> nn.Module | None:
    """Find the norm whose output the head reads, by running the model on one token; None if there is not exactly one.

    It is the norm outside of the blocks whose output is the final state.
    """
    inside = {id(module) for block in lm.blocks for module in block.modules()}
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        outputs[module] = output

    handles = [
        module.register_forward_hook(keep)
        for module in lm.model.modules()
        if id(module) not in inside and _is_norm(module, lm.width)
    ]
    try:
        state = final_states(lm, torch.tensor([[lm.bos]], device=lm.device))
    finally:
        for handle in handles:
            handle.remove()

    norms = [module for module, output in outputs.items() if torch.equal(output.to(state.device), state)]
    return norms[0] if len(norms) == 1 else None


def _is_norm(module: nn.Module, width: int) -> bool:
    """Say whether a module has no children and only vectors of the width as parameters: a weight, perhaps a bias."""
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    return not any(module.children()) and bool(shapes) and set(shapes) == {(width,)}


def through(norm: nn.Module, directions: Tensor) -> Tensor:
    """Return (latent, width): what ``norm`` makes of small steps along ``directions``, without its division.

    Its scale g is measured, since some norms scale by their weight and Gemma's by 1 + weight. Let v be +1 and −1 in
    turn, so that its mean is 0 and its mean square is 1. Then norm(v) − norm(−v) = 2 g v, and the bias cancels. A norm
    that subtracts the mean gives the same output for v + 1 as for v.
    """
    norm = gathered(norm).to(directions.device, torch.float32)
    v = torch.ones(directions.shape[1], device=directions.device)
    v[1::2] = -1

    subtracts_mean = torch.allclose(norm(v + 1), norm(v), atol=1e-3)
    if subtracts_mean:
        directions = directions - directions.mean(1, keepdim=True)
    return directions * (norm(v) - norm(-v)) / (2 * v)


def _read(directions: Tensor, unembedding: Tensor, top: int) -> Lens:
    """Compute moments and extremes of the logits directions × unembeddingᵀ, block by block.

    ``directions``: (latent, width). ``unembedding``: (token, width). ``top``: tokens to keep of each side.
    """
    size, latents = len(unembedding), len(directions)
    mean, deviation = _spread(directions, unembedding)

    # What is gathered over the blocks: Σ z³ and Σ z⁴ of the standard scores z, and the extremes of both sides so far,
    # as logits (latent, top) and tokens (latent, top). Suppressed tokens are those with the largest −logit.
    powers = torch.zeros(2, latents, dtype=torch.float64, device=directions.device)
    extremes = [
        (
            torch.full((latents, top), -torch.inf, device=directions.device),
            torch.zeros(latents, top, dtype=torch.long, device=directions.device),
        )
        for _ in ("promoted", "suppressed")
    ]

    for first in range(0, size, TOKENS):
        columns = unembedding[first : first + TOKENS].float().T.contiguous()  # (width, tokens of the block)
        for start in range(0, latents, LATENTS):
            part = slice(start, start + LATENTS)
            z = directions[part] @ columns  # logits, (latents of the part, tokens of the block)

            for sign, (values, tokens) in zip((1, -1), extremes, strict=True):
                block_values, block_places = _largest(z if sign > 0 else z.neg(), top)
                merged, order = torch.cat([values[part], block_values], 1).topk(top)
                tokens[part] = torch.cat([tokens[part], block_places + first], 1).gather(1, order)
                values[part] = merged

            # In place, to save memory: z turns into z³, then z² into z⁴.
            z = z.sub_(mean[part, None]).div_(deviation[part, None])
            squares = z.square()
            powers[0, part] += z.mul_(squares).sum(1)
            powers[1, part] += squares.square_().sum(1)

    skew, kurtosis = (powers / size).cpu().numpy()
    constant = (deviation == 0).cpu().numpy()
    skew[constant] = kurtosis[constant] = np.nan

    (promoted_values, promoted), (suppressed_values, suppressed) = (
        (values.cpu().numpy(), tokens.int().cpu().numpy()) for values, tokens in extremes
    )
    return Lens(
        promoted=promoted,
        promoted_values=promoted_values,
        suppressed=suppressed,
        suppressed_values=-suppressed_values,
        skew=skew,
        kurtosis=kurtosis - 3,  # a normal distribution has 3
    )


def _spread(directions: Tensor, unembedding: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation of each direction's logits, (latent,) each, without the logits.

    With the mean c and the covariance C of the unembedding's rows, the mean is d · c and the variance dᵀ C d.
    """
    width = directions.shape[1]
    total = torch.zeros(width, dtype=torch.float64, device=directions.device)
    products = torch.zeros(width, width, dtype=torch.float64, device=directions.device)
    for rows in unembedding.split(TOKENS):
        rows = rows.float()
        total += rows.sum(0, dtype=torch.float64)
        products += rows.T @ rows

    centre = total / len(unembedding)
    covariance = products / len(unembedding) - torch.outer(centre, centre)
    d = directions.double()
    variance = torch.linalg.vecdot(d @ covariance, d).clamp(min=0)
    return (d @ centre).float(), variance.sqrt().float()


def _largest(z: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the ``top`` largest values of each row of ``z`` (latent, token), and their places in the row.

    They lie in the ``top`` groups with the largest maxima, so only these groups are searched.
    """
    columns = z.shape[1]
    number = columns // GROUP
    if columns % GROUP or number <= top:
        return z.topk(min(top, columns))

    groups = z.view(len(z), number, GROUP)
    chosen = groups.amax(2).topk(top).indices  # (latent, top) groups
    candidates = groups.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)  # (latent, top × GROUP)
    values, place = candidates.topk(top)
    return values, chosen.gather(1, place // GROUP) * GROUP + place % GROUP
