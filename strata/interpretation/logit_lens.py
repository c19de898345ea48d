"""Which tokens of the vocabulary a latent's direction promotes and suppresses, read through the model's own last steps.

logits of a direction d:   W_U (g ⊙ d)        LayerNorm also takes the mean out of d first

g is the scale of the model's final norm. The norm's division by the size of its input is left out: it is one positive
number a token, which moves no token past another. So is the head's bias, which does not depend on d.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strata.lm.model import LanguageModel, final_states

TOKENS = 8192  # of the vocabulary, read at a time: 8,192 × 640 × 4 bytes = 21 MB
LATENTS = 256  # whose logits on them are in memory at a time: 256 × 8,192 × 4 bytes = 8 MB
GROUP = 64  # tokens whose largest logit is looked at first


class Lens(NamedTuple):
    """``promoted`` and ``suppressed``: (latent, top) tokens, strongest first, with their logits in ``…_values``.

    ``skew`` and ``kurtosis`` (excess): (latent,) of its logits over the vocabulary; NaN where they are all equal.
    """

    promoted: NDArray[np.int32]
    promoted_values: NDArray[np.float32]
    suppressed: NDArray[np.int32]
    suppressed_values: NDArray[np.float32]
    skew: NDArray[np.float64]
    kurtosis: NDArray[np.float64]

    def columns(self) -> dict[str, NDArray[Any]]:
        """One row a latent, side and rank: latent, rank, side, token, value."""
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
    """The lens on every direction of ``decoder`` (latent, width); None where the model's last steps are not understood.

    Memory holds a block of the vocabulary and some numbers a latent, never latents × vocabulary.
    """
    head = lm.model.get_output_embeddings()
    norm = final_norm(lm)
    if norm is None or not isinstance(head, nn.Linear) or head.in_features != decoder.shape[1]:
        return None
    directions = through(norm, decoder.to(lm.device, torch.float32))
    unembedding = head.weight[: len(lm.tokenizer)]  # rows behind the tokenizer's last only fill up the matrix
    return _read(directions, unembedding, min(top, len(unembedding)))


def final_norm(lm: LanguageModel) -> nn.Module | None:
    """The norm whose output the head reads, found by running the model on one token; None if there is none."""
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
    found = [module for module, output in outputs.items() if torch.equal(output, state)]
    return found[0] if len(found) == 1 else None


def _is_norm(module: nn.Module, width: int) -> bool:
    """A leaf whose parameters are vectors of the width: a weight, perhaps a bias."""
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    return not any(module.children()) and bool(shapes) and set(shapes) == {(width,)}


def through(norm: nn.Module, directions: Tensor) -> Tensor:
    """What ``norm`` does to small steps along ``directions`` (latent, width), but for its division.

    Asked of the norm itself, since some scale by their weight and Gemma by 1 + weight: with v of +1 and −1 in turn,
    of mean 0 and mean square 1, norm(v) − norm(−v) = 2 g v, and the bias falls out. A norm that takes the mean out
    does not see that v + 1 is another input.
    """
    norm = copy.deepcopy(norm).float()
    v = torch.ones(directions.shape[1], device=directions.device)
    v[1::2] = -1
    if torch.allclose(norm(v + 1), norm(v), atol=1e-3):
        directions = directions - directions.mean(1, keepdim=True)
    return directions * (norm(v) - norm(-v)) / (2 * v)


def _read(directions: Tensor, unembedding: Tensor, top: int) -> Lens:
    """Moments and extremes of directions × unembedding, block by block."""
    size, latents = len(unembedding), len(directions)
    mean, deviation = _spread(directions, unembedding)
    powers = torch.zeros(2, latents, dtype=torch.float64, device=directions.device)  # of standard scores: 3, 4
    best = [(torch.full((latents, top), -torch.inf), torch.zeros(latents, top, dtype=torch.long)) for _ in range(2)]
    best = [(values.to(directions.device), tokens.to(directions.device)) for values, tokens in best]
    for first in range(0, size, TOKENS):
        columns = unembedding[first : first + TOKENS].float().T.contiguous()
        for start in range(0, latents, LATENTS):
            part = slice(start, start + LATENTS)
            z = directions[part] @ columns
            for sign, (values, tokens) in zip((1, -1), best, strict=True):
                found, where = _largest(z if sign > 0 else z.neg(), top)
                merged, order = torch.cat([values[part], found], 1).topk(top)
                tokens[part] = torch.cat([tokens[part], where + first], 1).gather(1, order)
                values[part] = merged
            z = z.sub_(mean[part, None]).div_(deviation[part, None])
            squares = z.square()
            powers[0, part] += z.mul_(squares).sum(1)
            powers[1, part] += squares.square_().sum(1)
    skew, kurtosis = (powers / size).cpu().numpy()
    constant = (deviation == 0).cpu().numpy()
    skew[constant] = kurtosis[constant] = np.nan
    (promoted, promoted_tokens), (suppressed, suppressed_tokens) = ((v.cpu(), t.int().cpu()) for v, t in best)
    return Lens(
        promoted_tokens.numpy(),
        promoted.numpy(),
        suppressed_tokens.numpy(),
        suppressed.neg().numpy(),
        skew,
        kurtosis - 3,
    )


def _spread(directions: Tensor, unembedding: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each direction's logits, from the mean and covariance of the unembedding."""
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
    """The ``top`` largest of each row and their places; they lie in the ``top`` groups with the largest maxima."""
    columns = z.shape[1]
    whole = columns // GROUP
    if columns % GROUP or whole <= top:
        return z.topk(min(top, columns))
    groups = z.view(len(z), whole, GROUP)
    chosen = groups.amax(2).topk(top).indices
    candidates = groups.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    values, where = candidates.topk(top)
    return values, chosen.gather(1, where // GROUP) * GROUP + where % GROUP
