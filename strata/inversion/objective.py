"""A latent as a function of prompts: what every search climbs on. It counts how often a search runs the model."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from strata.lm.anatomy import FOREIGN, same
from strata.lm.devices import weight_of
from strata.lm.model import Hook, LanguageModel, capture, final_states, forward_until, logits
from strata.run.door import BadInput
from strata.sae.sae import SAE

BATCH = 32  # prompts in one pass
BACKWARD = 2  # forward passes that a backward pass counts as


def states(lm: LanguageModel, hook: Hook, layer: int, embeddings: Tensor) -> Tensor:
    """Compute the activations at ``hook``, (prompt, position, width), from ``embeddings`` of the same shape.

    No later block runs.
    """
    with capture(lm, hook, [layer]) as seen:
        forward_until(lm, layer, embeddings=embeddings)
    return seen[layer]


def opened(lm: LanguageModel, prompts: Tensor) -> Tensor:
    """Put BOS in front of each of ``prompts`` (prompt, token)."""
    return torch.cat([prompts.new_full((len(prompts), 1), lm.bos), prompts], dim=1)


def embedded(lm: LanguageModel, prompts: Tensor) -> Tensor:
    """Embed ``prompts`` (prompt, token), with BOS in front, for the first block: (prompt, 1 + token, width)."""
    return lm.model.get_input_embeddings()(opened(lm, prompts))


@torch.no_grad()
def check_embeddings(lm: LanguageModel, tokens: Tensor) -> None:
    """Raise BadInput if the model computes something else from embeddings than from their ``tokens`` (token,).

    A search that moves embeddings would climb on another model.
    """
    prompt = tokens[None]
    try:
        from_embeddings = final_states(lm, embeddings=lm.model.get_input_embeddings()(prompt))
    except FOREIGN as error:
        raise BadInput(f"{type(lm.model).__name__} reads no embeddings, so no prompt can be searched for") from error
    if not same(from_embeddings, final_states(lm, prompt)):
        raise BadInput(
            f"{type(lm.model).__name__} computes something else from embeddings than from their tokens, so no prompt "
            "can be searched for; set invert.run: false"
        )


def embeddings(lm: LanguageModel) -> tuple[Tensor, float]:
    """Return the model's table (vocabulary, width), and the factor of a row when looked up: 1 in most models."""
    layer = lm.model.get_input_embeddings()
    assert isinstance(layer.weight, Tensor)
    scale = torch.as_tensor(getattr(layer, "embed_scale", 1.0))
    return weight_of(layer).to(lm.device), float(scale.to(layer.weight.dtype))  # rounded as the model rounds it


def reads(sae: SAE, latents: list[int]) -> tuple[Tensor, Tensor]:
    """Return directions (latent, width) and biases (latent,), so that h = (x − b_dec) · direction + bias.

    A merged latent, which is a group of parts, has the sum of theirs. That only guides the search: the code of such a
    latent is what `encode` says.
    """
    if sae.groups is None or sae.shares is None:
        return sae.encoder[latents], sae.b_enc[latents]

    inside = sae.groups >= 0
    bias = torch.zeros(sae.latents, device=sae.b_enc.device)
    bias.index_add_(0, sae.groups[inside], (sae.b_enc * sae.shares)[inside])
    return sae.directions_read()[latents], bias[latents]


@dataclass
class Objective:
    """h of one latent at the last token of a prompt, before any threshold, so that a silent latent has a slope too.

    The last token is taken because every token counts there; tokens behind a peak do nothing for it. Prompts are token
    ids (prompt, token) without BOS, all of one length.

    ``scale``: the activation that counts as 1, the corpus maximum. ``calls``: how many prompts were run so far; a
    backward pass counts as BACKWARD more.
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
        """What the latent reads: its direction (width,) and its bias."""
        directions, biases = reads(self.sae, [self.latent])
        return directions[0], biases[0]

    def preactivations(self, embeddings: Tensor) -> Tensor:
        """Compute h (prompt,) of ``embeddings`` (prompt, position, width), which begin with BOS."""
        self.calls += len(embeddings)
        return self._h(states(self.lm, self.hook, self.layer, embeddings)[:, -1])

    def _h(self, x: Tensor) -> Tensor:
        """Compute h (…) of activations ``x`` (…, width)."""
        direction, bias = self._read
        return (x.float() - self.sae.b_dec) @ direction + bias

    @torch.no_grad()
    def heights(self, prompts: Tensor) -> Tensor:
        """Compute h of each of ``prompts`` (prompt, token) at its last token, (prompt,)."""
        parts = [self.preactivations(embedded(self.lm, part)) for part in prompts.split(BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, device=prompts.device)

    @torch.no_grad()
    def highest(self, prompts: Tensor) -> Tensor:
        """Compute the largest h of each of ``prompts`` (prompt, token) at any token, (prompt,)."""
        self.calls += len(prompts)
        parts = []
        for part in prompts.split(BATCH):
            x = states(self.lm, self.hook, self.layer, embedded(self.lm, part))[:, 1:]
            parts.append(self._h(x).amax(1))
        return torch.cat(parts) if parts else torch.zeros(0, device=prompts.device)

    def slope(self, prompt: Tensor) -> Tensor:
        """Compute the gradient of h by the embedding of each token of ``prompt`` (token,): (token, width) float32."""
        with torch.enable_grad():
            embeddings = embedded(self.lm, prompt[None]).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.preactivations(embeddings)[0], embeddings)
        self.calls += BACKWARD
        return gradient[0, 1:].float()

    def with_predictions(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Compute h as :meth:`preactivations`, and the final states that predict each token, (prompt, token, width)."""
        self.calls += len(embeddings)
        with capture(self.lm, self.hook, [self.layer]) as seen:
            last = final_states(self.lm, embeddings=embeddings)
        return self._h(seen[self.layer][:, -1]), last[:, :-1]

    @torch.no_grad()
    def predicted(self, prompt: Tensor) -> Tensor:
        """Compute :func:`log_probabilities` of ``prompt``, and count it as a call."""
        self.calls += 1
        return log_probabilities(self.lm, prompt)


@torch.no_grad()
def log_probabilities(lm: LanguageModel, prompt: Tensor) -> Tensor:
    """Compute the model's log-probabilities at each token of ``prompt`` (token,), (token, vocabulary).

    They are predicted from BOS and the tokens before it.
    """
    last = final_states(lm, opened(lm, prompt[None]))[0, :-1]
    return logits(lm, last).float().log_softmax(1)


def surprise(predicted: Tensor, prompt: Tensor) -> float:
    """Compute the cross-entropy of a ``prompt`` (token,), mean nats a token.

    ``predicted``: (token, vocabulary), as :func:`log_probabilities` gives.
    """
    return float(-predicted.gather(1, prompt[:, None]).double().mean())
