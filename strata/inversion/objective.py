"""A latent as a function of prompts: what every search climbs on, and how often it looked at the model."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from strata.lm.anatomy import FOREIGN, same
from strata.lm.model import Hook, LanguageModel, capture, final_states, forward_until, logits
from strata.run.door import BadInput
from strata.sae.sae import SAE

BATCH = 32  # prompts in one pass
BACKWARD = 2  # passes forward that a pass backward counts as


def states(lm: LanguageModel, hook: Hook, layer: int, embeddings: Tensor) -> Tensor:
    """Activations at ``hook``, (prompt, position, width), of ``embeddings`` of that shape; no later block runs."""
    with capture(lm, hook, [layer]) as seen:
        forward_until(lm, layer, embeddings=embeddings)
    return seen[layer]


def opened(lm: LanguageModel, prompts: Tensor) -> Tensor:
    """``prompts`` (prompt, token) with BOS in front of each."""
    return torch.cat([prompts.new_full((len(prompts), 1), lm.bos), prompts], dim=1)


def embedded(lm: LanguageModel, prompts: Tensor) -> Tensor:
    """What the first block reads of ``prompts``, BOS in front: (prompt, 1 + token, width)."""
    return lm.model.get_input_embeddings()(opened(lm, prompts))


@torch.no_grad()
def check_embeddings(lm: LanguageModel, tokens: Tensor) -> None:
    """Refuse a model that makes something else of embeddings than of the ``tokens`` (token,) that they are of: a search
    that moves embeddings would climb another model."""
    prompt = tokens[None]
    try:
        found = final_states(lm, embeddings=lm.model.get_input_embeddings()(prompt))
    except FOREIGN as error:
        raise BadInput(f"{type(lm.model).__name__} reads no embeddings, so no prompt can be searched for") from error
    if not same(found, final_states(lm, prompt)):
        raise BadInput(
            f"{type(lm.model).__name__} computes something else from embeddings than from their tokens, so no prompt "
            "can be searched for; set invert.run: false"
        )


def embeddings(lm: LanguageModel) -> tuple[Tensor, float]:
    """The model's table (vocabulary, width), and by what a row is multiplied when looked up: 1, but in Gemma 3."""
    layer = lm.model.get_input_embeddings()
    assert isinstance(layer.weight, Tensor)
    scale = torch.as_tensor(getattr(layer, "embed_scale", 1.0))
    return layer.weight.detach(), float(scale.to(layer.weight.dtype))  # rounded as the model rounds it


def reads(sae: SAE, latents: list[int]) -> tuple[Tensor, Tensor]:
    """Directions (latent, width) and biases (latent,): h = (x − b_dec) · direction + bias.

    Of a group of parts it is the sum of theirs, a guide for the search alone: its code is what `encode` makes of it.
    """
    if sae.groups is None or sae.shares is None:
        return sae.encoder[latents], sae.b_enc[latents]
    inside = sae.groups >= 0
    bias = torch.zeros(sae.latents, device=sae.b_enc.device)
    bias.index_add_(0, sae.groups[inside], (sae.b_enc * sae.shares)[inside])
    return sae.directions_read()[latents], bias[latents]


@dataclass
class Objective:
    """h of one latent at the last token of a prompt, before any threshold, so that a silent latent too has a slope.

    At the last because there every token counts: what stands behind a peak does nothing for it. Prompts are (prompt,
    token) ids without BOS, all of one length. ``scale``: the activation that counts as 1, the corpus maximum.
    ``calls``: prompts run so far, a pass backward counting as two.
    """

    lm: LanguageModel
    sae: SAE
    hook: Hook
    layer: int
    latent: int
    scale: float
    calls: int = 0

    @cached_property
    def _read(self) -> tuple[Tensor, Tensor]:
        directions, biases = reads(self.sae, [self.latent])
        return directions[0], biases[0]

    def preactivations(self, embeddings: Tensor) -> Tensor:
        """h (prompt,) of ``embeddings`` (prompt, position, width), which begin with BOS."""
        self.calls += len(embeddings)
        return self._h(states(self.lm, self.hook, self.layer, embeddings)[:, -1])

    def _h(self, x: Tensor) -> Tensor:
        direction, bias = self._read
        return (x.float() - self.sae.b_dec) @ direction + bias

    @torch.no_grad()
    def heights(self, prompts: Tensor) -> Tensor:
        """(prompt,) h of each prompt."""
        parts = [self.preactivations(embedded(self.lm, part)) for part in prompts.split(BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, device=prompts.device)

    @torch.no_grad()
    def highest(self, prompts: Tensor) -> Tensor:
        """(prompt,) the largest h of each prompt, at whatever token."""
        self.calls += len(prompts)
        found = []
        for part in prompts.split(BATCH):
            x = states(self.lm, self.hook, self.layer, embedded(self.lm, part))[:, 1:]
            found.append(self._h(x).amax(1))
        return torch.cat(found) if found else torch.zeros(0, device=prompts.device)

    def slope(self, prompt: Tensor) -> Tensor:
        """The gradient of h by the embedding of each token of one prompt, (token, width), float32."""
        with torch.enable_grad():
            embeddings = embedded(self.lm, prompt[None]).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.preactivations(embeddings)[0], embeddings)
        self.calls += BACKWARD
        return gradient[0, 1:].float()

    def with_predictions(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """h as :meth:`preactivations`, and what the model predicts each token from, (prompt, token, width)."""
        self.calls += len(embeddings)
        with capture(self.lm, self.hook, [self.layer]) as seen:
            last = final_states(self.lm, embeddings=embeddings)
        return self._h(seen[self.layer][:, -1]), last[:, :-1]

    @torch.no_grad()
    def predicted(self, prompt: Tensor) -> Tensor:
        """As :func:`log_probabilities`, counted as a call."""
        self.calls += 1
        return log_probabilities(self.lm, prompt)


@torch.no_grad()
def log_probabilities(lm: LanguageModel, prompt: Tensor) -> Tensor:
    """Log-probabilities (token, vocabulary) of each token of ``prompt`` (token,), after BOS and those before it."""
    last = final_states(lm, opened(lm, prompt[None]))[0, :-1]
    return logits(lm, last).float().log_softmax(1)


def surprise(predicted: Tensor, prompt: Tensor) -> float:
    """The cross-entropy of a ``prompt`` (token,), mean nats a token, by :func:`log_probabilities`."""
    return float(-predicted.gather(1, prompt[:, None]).double().mean())
