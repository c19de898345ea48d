"""Gradient search over embeddings that need not be those of any token, and the way back to tokens.

Free embeddings reach many times the corpus maximum, one step away from the tokens where they began, but the nearest
tokens are still just these. So at every step the model reads the nearest tokens, and the slope there moves the
embeddings, until other tokens are nearer (Wen et al. 2023, arXiv 2302.03668).

The loss, in shares of the corpus maximum, is −h plus four weighted penalties, each of which has a gradient:

distance    mean of ‖p − e‖² / ‖e‖² over positions: p is the embedding there, e that of the nearest token by cosine
diversity   mean cosine of two positions
repetition  mean overlap of two positions' soft tokens, Σ q q′
fluency     mean cross-entropy of the soft tokens under the model, −Σ q log P, in nats

A position's soft token q is a distribution: the softmax of its cosines / TEMPERATURE with the tokens that are near to
any position of the same start. h is what the latent reads at the last token, before any threshold (see `Objective`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from strata.inversion.knobs import Soft
from strata.inversion.objective import BACKWARD, Objective, embedded, embeddings
from strata.inversion.vocabulary import Vocabulary
from strata.lm.model import logits

NEAR = 8  # the nearest tokens of each position, of which soft tokens are made
TEMPERATURE = 0.1


@dataclass(frozen=True)
class Table:
    """The embeddings of all tokens.

    ``weight``: (vocabulary, width), the model's own. ``norm``: (vocabulary,) the lengths of its rows. ``stretch``: the
    factor that turns ``weight`` into what the first block reads.
    """

    vocabulary: Vocabulary
    weight: Tensor
    norm: Tensor
    stretch: float

    def near(self, p: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Find the ``count`` allowed tokens that are nearest to each of ``p`` (start, position, width), or all of them.

        Returns cosines and token ids, (start, position, count) each, the nearest first.
        """
        cosines = (normalize(p, dim=-1).to(self.weight.dtype) @ self.weight.T).float() / self.norm
        nearest = cosines.masked_fill_(~self.vocabulary.allowed, -2).topk(
            min(count, int(self.vocabulary.allowed.sum()))
        )
        return nearest.values, nearest.indices

    def rows(self, tokens: Tensor) -> Tensor:
        """Look up the embeddings (…, width) of ``tokens`` (…), float32."""
        return self.weight[tokens].float() * self.stretch


@dataclass
class Drift:
    """The path of one start.

    ``prompt``: (token,) the best prompt on the way. ``h``: of that prompt, −∞ if none survived. ``cosines``: (token,)
    of its tokens with the embeddings that they were nearest to; 1 for tokens of the prefix, which are their own.
    ``end``: (free position, width) the last embeddings. ``curve``: after each step, the calls of the objective so far,
    and the best h of this start so far.
    """

    prompt: Tensor
    h: float
    cosines: Tensor
    end: Tensor
    curve: list[tuple[int, float]]


def table_of(vocabulary: Vocabulary) -> Table:
    """Make the table of the model's embeddings, without a copy of them."""
    weight, stretch = embeddings(vocabulary.lm)
    norm = torch.cat([part.float().norm(dim=1) for part in weight.split(2**14)])
    return Table(vocabulary, weight, norm.clamp(min=1e-6), stretch)


def soft(objective: Objective, table: Table, starts: Tensor, knobs: Soft) -> list[Drift]:
    """Descend from the embeddings of ``starts`` (start, token), all at once.

    The nearest tokens of every step are a candidate for the best prompt. The prefix and what stands before it stay as
    they are. Returns one drift for each start.
    """
    # Starts begin with the prefix, and `embedded` puts BOS in front of it: these 1 + fixed positions never move.
    fixed = len(table.vocabulary.prefix)
    opening, free = embedded(objective.lm, starts).split([1 + fixed, starts.shape[1] - fixed], dim=1)

    # The search moves p / size, so that lr is in shares of an embedding's usual entry.
    size = free.float().square().mean().sqrt()
    scaled = (free.float() / size).requires_grad_()
    optimizer = torch.optim.Adam([scaled], lr=knobs.lr)

    ones = torch.ones(starts.shape[1], device=starts.device)
    drifts = [Drift(prompt, -torch.inf, ones, free[i], []) for i, prompt in enumerate(starts)]
    for _ in range(knobs.steps):
        p = scaled * size  # (start, free position, width)
        cosines, near = table.near(p.detach(), NEAR)
        h, penalties = _terms(objective, table, opening, p, near, knobs)
        _land(table.vocabulary, drifts, objective.calls, near[..., 0], cosines[..., 0], h.detach())

        optimizer.zero_grad()
        (penalties - h / objective.scale).sum().backward()
        optimizer.step()

    for drift, end in zip(drifts, (scaled * size).detach(), strict=True):
        drift.end = end
    return drifts


def _terms(
    objective: Objective, table: Table, opening: Tensor, p: Tensor, near: Tensor, knobs: Soft
) -> tuple[Tensor, Tensor]:
    """Compute h of the nearest tokens, (start,), and the weighted penalties of ``p``, (start,).

    ``opening``: (start, 1 + prefix, width) what stands before ``p``. ``p``: (start, free position, width). ``near``:
    (start, free position, NEAR) token ids, the nearest first.
    """
    # The value is that of the nearest tokens, the gradient goes to p as if it had been read itself (straight-through).
    read = p + (table.rows(near[..., 0]) - p).detach()
    whole = torch.cat([opening, read.to(opening.dtype)], dim=1)

    if knobs.fluency:
        # predicting: (start, prefix + free position, width). Entry i is the state that predicts token i, where BOS does
        # not count. The cut leaves (start, free position, width).
        h, predicting = objective.with_predictions(whole)
        loss = knobs.fluency * fluency(objective, table, p, near, predicting[:, opening.shape[1] - 1 :])
    else:
        h, loss = objective.preactivations(whole), torch.zeros(len(p), device=p.device)
    # The objective has counted the forward pass. This counts the backward pass that follows in `soft`.
    objective.calls += BACKWARD * len(p)

    if knobs.distance:
        loss = loss + knobs.distance * distance(table, p, near)
    if knobs.diversity:
        loss = loss + knobs.diversity * diversity(p)
    if knobs.repetition:
        loss = loss + knobs.repetition * repetition(table, p, near)
    return h, loss


def distance(table: Table, p: Tensor, near: Tensor) -> Tensor:
    """Measure how far positions are from the nearest token, (start,): squared distance over squared length."""
    nearest = table.rows(near[..., 0])
    return ((p - nearest).square().sum(-1) / nearest.square().sum(-1)).mean(1)


def diversity(p: Tensor) -> Tensor:
    """Compute the mean cosine of two positions, (start,)."""
    unit = normalize(p, dim=-1)
    return _pairs(unit @ unit.mT)


def repetition(table: Table, p: Tensor, near: Tensor) -> Tensor:
    """Compute the mean overlap of two positions' soft tokens, (start,)."""
    q, _ = soft_tokens(table, p, near)
    return _pairs(q @ q.mT)


def _pairs(square: Tensor) -> Tensor:
    """Average ``square`` (start, position, position) off the diagonal, (start,); 0 where there is one position."""
    count = square.shape[1]
    return (square.sum((1, 2)) - square.diagonal(dim1=1, dim2=2).sum(1)) / max(1, count * (count - 1))


def soft_tokens(table: Table, p: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the soft tokens q (start, position, choice), and the tokens that are the choices (start, choice).

    The choices of a start are the tokens near to any of its positions. One that is near to several is listed as often,
    and counts once: the others have no part in q.
    """
    choices = near.flatten(1).sort(1).values
    repeats = torch.zeros_like(choices, dtype=torch.bool)
    repeats[:, 1:] = choices[:, 1:] == choices[:, :-1]

    cosines = normalize(p, dim=-1) @ normalize(table.rows(choices), dim=-1).mT
    return (cosines / TEMPERATURE).masked_fill(repeats[:, None], -torch.inf).softmax(-1), choices


def fluency(objective: Objective, table: Table, p: Tensor, near: Tensor, predicting: Tensor) -> Tensor:
    """Compute the cross-entropy of the soft tokens, (start,), in nats.

    ``predicting``: (start, position, width) the final states of the positions before them.
    """
    q, choices = soft_tokens(table, p, near)

    # One start at a time, because `logits` takes (row, width): (position, vocabulary) each.
    cross_entropy = []
    for start_q, start_choices, states in zip(q, choices, predicting, strict=True):
        scores = logits(objective.lm, states).float()
        log_p = scores[:, start_choices] - scores.logsumexp(1, keepdim=True)
        cross_entropy.append(-(start_q * log_p).sum(-1).mean())
    return torch.stack(cross_entropy)


def _land(vocabulary: Vocabulary, drifts: list[Drift], calls: int, tokens: Tensor, cosines: Tensor, h: Tensor) -> None:
    """Keep the nearest tokens of each start where they beat its best prompt and survive being written as text.

    They survive if they are the same tokens when that text is read again (see `vocabulary.py`).

    ``tokens`` and ``cosines``: (start, free position). ``h``: (start,). ``calls``: how many calls were made so far.
    """
    prefix = vocabulary.prefix.expand(len(tokens), -1)  # (start, prefix)
    prompts = torch.cat([prefix, tokens], dim=1)
    cosines = torch.cat([torch.ones_like(prefix, dtype=cosines.dtype), cosines], dim=1)  # (start, token)
    heights = torch.where(vocabulary.survive(prompts), h, -torch.inf).tolist()
    for drift, prompt, height, token_cosines in zip(drifts, prompts, heights, cosines, strict=True):
        if height > drift.h:
            drift.prompt, drift.h, drift.cosines = prompt, height, token_cosines
        drift.curve.append((calls, drift.h))
