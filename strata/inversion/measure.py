"""Measure what a prompt is worth as text: write it down, read it again, and run it again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from strata.inversion.objective import opened, surprise
from strata.inversion.vocabulary import Vocabulary
from strata.lm.model import Hook, capture, final_states, logits
from strata.sae.sae import SAE


@dataclass(frozen=True)
class Measured:
    """A prompt as its text is read again.

    ``tokens``, ``pieces``, ``values``: its token ids, their texts, and the latent's code at each. ``activation``: the
    largest code; special tokens do not count. ``cross_entropy``: mean nats a token. ``specificity``: the code at the
    peak over the mean of all other latents' codes there; None where either is 0.
    """

    text: str
    tokens: list[int]
    pieces: list[str]
    values: list[float]
    activation: float
    cross_entropy: float
    specificity: float | None


@torch.no_grad()
def measured(vocabulary: Vocabulary, sae: SAE, hook: Hook, layer: int, latent: int, prompt: Tensor) -> Measured:
    """Write ``prompt`` (token,) down, read it again, put BOS in front, run it by itself, and encode its activations."""
    lm, text = vocabulary.lm, vocabulary.text(prompt)
    tokens = vocabulary.read([text])[0]
    ids = torch.tensor(tokens, device=lm.device)

    with capture(lm, hook, [layer]) as seen:
        last = final_states(lm, opened(lm, ids[None]))[0, :-1]
    codes = sae.encode(seen[layer][0, 1:])

    dense = codes.pattern.dense(codes.values)  # (token, latent)
    dense[torch.isin(ids, lm.special_ids())] = 0
    peak = int(dense[:, latent].argmax())
    activation = float(dense[peak, latent])
    others = float((dense[peak].double().sum() - activation) / max(1, sae.latents - 1))
    return Measured(
        text,
        tokens,
        vocabulary.pieces(tokens),
        dense[:, latent].tolist(),
        activation,
        surprise(logits(lm, last).float().log_softmax(1), ids),
        activation / others if activation > 0 and others > 0 else None,
    )
