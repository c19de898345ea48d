"""Gradient search over embeddings that need be no token's, and back to tokens.

Embeddings on their own reach many times the corpus maximum a step away from the tokens they began as, and fall back on
just these. So at every step the model reads the nearest tokens, and the slope there moves the embeddings, until others
are nearer (Wen et al. 2023, arXiv 2302.03668).

The loss, in shares of the corpus maximum, is −h and four penalties with weights, each of which has a gradient:

distance    mean of ‖p − e‖² / ‖e‖² over positions, p the embedding there, e that of the nearest token by cosine
diversity   mean cosine of two positions
repetition  mean overlap of two positions' soft tokens, Σ q q′
fluency     mean cross-entropy of the soft tokens under the model, −Σ q log P, in nats

A position's soft token q is the softmax of its cosines / TEMPERATURE with the tokens that are near to any position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from strata.inversion.knobs import Soft
from strata.inversion.objective import BACKWARD, Objective, embedded, embeddings
from strata.inversion.vocabulary import Vocabulary
from strata.lm.model import logits

NEAR = 8  # tokens near to a position that soft tokens are made of
TEMPERATURE = 0.1


@dataclass(frozen=True)
class Table:
    """The embeddings of all tokens: ``weight`` (vocabulary, width), ``norm`` (vocabulary,), as the first block reads
    them after multiplying by ``stretch``."""

    vocabulary: Vocabulary
    weight: Tensor
    norm: Tensor
    stretch: float

    def near(self, p: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and ids (start, position, count) of the allowed tokens nearest to ``p`` (start, position, width)."""
        cosines = (normalize(p, dim=-1).to(self.weight.dtype) @ self.weight.T).float() / self.norm
        found = cosines.masked_fill_(~self.vocabulary.allowed, -2).topk(min(count, len(self.norm)))
        return found.values, found.indices

    def rows(self, tokens: Tensor) -> Tensor:
        """(…, width) the embeddings of ``tokens``, float32."""
        return self.weight[tokens].float() * self.stretch


@dataclass
class Drift:
    """What became of a start: the best ``prompt`` (token,) on its way, that one's ``h`` (−∞ if none survived), and the
    ``cosines`` (token,) of the embeddings that it was nearest to. ``end``: (free position, width), the last embeddings.
    ``curve``: the best h after so many calls."""

    prompt: Tensor
    h: float
    cosines: Tensor
    end: Tensor
    curve: list[tuple[int, float]]


def table_of(vocabulary: Vocabulary) -> Table:
    """The model's own table, which is not copied."""
    weight, stretch = embeddings(vocabulary.lm)
    norm = torch.cat([part.float().norm(dim=1) for part in weight.split(2**14)])
    return Table(vocabulary, weight, norm.clamp(min=1e-6), stretch)


def soft(objective: Objective, table: Table, starts: Tensor, knobs: Soft) -> list[Drift]:
    """Descend from the embeddings of ``starts`` (start, token), all at once; every step's nearest tokens are tried."""
    fixed = len(table.vocabulary.prefix)
    opening, free = embedded(objective.lm, starts).split([1 + fixed, starts.shape[1] - fixed], dim=1)
    size = free.float().square().mean().sqrt()  # so that lr is in shares of an embedding's usual entry
    at = (free.float() / size).requires_grad_()
    optimizer = torch.optim.Adam([at], lr=knobs.lr)
    ones = torch.ones(starts.shape[1], device=starts.device)
    drifts = [Drift(prompt, -torch.inf, ones, free[i], []) for i, prompt in enumerate(starts)]
    for _ in range(knobs.steps):
        p = at * size
        cosines, near = table.near(p.detach(), NEAR)
        h, penalties = _terms(objective, table, opening, p, near, knobs)
        _land(table.vocabulary, drifts, objective.calls, near[..., 0], cosines[..., 0], h.detach())
        optimizer.zero_grad()
        (penalties - h / objective.scale).sum().backward()
        optimizer.step()
    for drift, end in zip(drifts, (at * size).detach(), strict=True):
        drift.end = end
    return drifts


def _terms(
    objective: Objective, table: Table, opening: Tensor, p: Tensor, near: Tensor, knobs: Soft
) -> tuple[Tensor, Tensor]:
    """(start,) h of the nearest tokens, whose slope is taken for that of ``p``; and the penalties of ``p``."""
    whole = torch.cat([opening, (p + (table.rows(near[..., 0]) - p).detach()).to(opening.dtype)], dim=1)
    if knobs.fluency:
        h, predicting = objective.with_predictions(whole)
        loss = knobs.fluency * fluency(objective, table, p, near, predicting[:, opening.shape[1] - 1 :])
    else:
        h, loss = objective.preactivations(whole), torch.zeros(len(p), device=p.device)
    objective.calls += BACKWARD * len(p)
    if knobs.distance:
        loss = loss + knobs.distance * distance(table, p, near)
    if knobs.diversity:
        loss = loss + knobs.diversity * diversity(p)
    if knobs.repetition:
        loss = loss + knobs.repetition * repetition(table, p, near)
    return h, loss


def distance(table: Table, p: Tensor, near: Tensor) -> Tensor:
    """(start,) how far positions are from the nearest token, in shares of its length, squared."""
    real = table.rows(near[..., 0])
    return ((p - real).square().sum(-1) / real.square().sum(-1)).mean(1)


def diversity(p: Tensor) -> Tensor:
    """(start,) mean cosine of two positions."""
    unit = normalize(p, dim=-1)
    return _pairs(unit @ unit.mT)


def repetition(table: Table, p: Tensor, near: Tensor) -> Tensor:
    """(start,) mean overlap of two positions' soft tokens."""
    q, _ = soft_tokens(table, p, near)
    return _pairs(q @ q.mT)


def _pairs(square: Tensor) -> Tensor:
    """(start,) the mean of (start, position, position) off the diagonal; 0 of a single position."""
    count = square.shape[1]
    return (square.sum((1, 2)) - square.diagonal(dim1=1, dim2=2).sum(1)) / max(1, count * (count - 1))


def soft_tokens(table: Table, p: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """q (start, position, choice), and the tokens that are the choices (choice,)."""
    choices = near.unique()
    cosines = normalize(p, dim=-1) @ normalize(table.rows(choices), dim=-1).T
    return (cosines / TEMPERATURE).softmax(-1), choices


def fluency(objective: Objective, table: Table, p: Tensor, near: Tensor, predicting: Tensor) -> Tensor:
    """(start,) cross-entropy of the soft tokens, predicted from ``predicting`` (start, position, width)."""
    q, choices = soft_tokens(table, p, near)
    guesses = [logits(objective.lm, rows).float() for rows in predicting]
    log_p = torch.stack([guess[:, choices] - guess.logsumexp(1, keepdim=True) for guess in guesses])
    return -(q * log_p).sum(-1).mean(1)


def _land(vocabulary: Vocabulary, drifts: list[Drift], calls: int, tokens: Tensor, cosines: Tensor, h: Tensor) -> None:
    """Keep the nearest ``tokens`` (start, free position), with their ``h``, where they are better and survive."""
    prompts = torch.cat([vocabulary.prefix.expand(len(tokens), -1), tokens], dim=1)
    better = torch.where(vocabulary.survive(prompts), h, -torch.inf).tolist()
    for drift, prompt, height, near in zip(drifts, prompts, better, cosines, strict=True):
        if height > drift.h:
            drift.prompt, drift.h, drift.cosines = prompt, height, near
        drift.curve.append((calls, drift.h))
