"""Let the steered model write texts, and measure these with the model that is not steered."""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch

from strata.lm.model import capture, final_states, logits
from strata.steering.conditions import Condition, Place
from strata.steering.steer import columns

ROWS = 256  # predictions whose logits are in memory at a time

Written = dict[str, Any]


@torch.inference_mode()
def generate(
    place: Place,
    prompts: list[list[int]],
    steered: Sequence[tuple[Condition | None, float]],
    tokens: int,
) -> list[list[int]]:
    """Continue each of ``prompts`` under each condition and strength by ``tokens`` tokens, always the likeliest one.

    Returns the tokens behind the prompts, in the order of ``steered`` and then of ``prompts``. All texts run at once,
    so that the model is read from memory once a step, however many they are. No text ends early.
    """
    # Prompts are padded on the left, so that all continuations begin at the same position.
    longest, lm = max(map(len, prompts)), place.lm
    padded = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for number, prompt in enumerate(prompts):
        padded[number, longest - len(prompt) :] = torch.tensor(prompt)
        mask[number, longest - len(prompt) :] = 1

    # (steered × prompts,) one text for each; a condition has strength 0 in the texts of the others.
    ids, masks = (x.repeat(len(steered), 1).to(lm.device) for x in (padded, mask))
    strengths = torch.tensor([strength for _, strength in steered]).repeat_interleave(len(prompts))
    unique_conditions = list({condition.name: condition for condition, _ in steered if condition}.values())
    with ExitStack() as stack:
        for condition in unique_conditions:
            is_own = [float(run_condition is condition) for run_condition, _ in steered]
            applies = torch.tensor(is_own).repeat_interleave(len(prompts))
            stack.enter_context(condition.applied(place, strengths * applies))
        texts = lm.model.generate(  # pyright: ignore[reportCallIssue]
            ids,
            attention_mask=masks,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            top_k=None,
            top_p=None,
            pad_token_id=0,
        )
    return texts[:, longest:].tolist()


@torch.inference_mode()
def read_back(
    place: Place, prompts: list[list[int]], written: list[list[int]], latent: int, largest: float
) -> list[Written]:
    """Read each text ``written`` after its prompt with the model that is not steered, and measure it.

    ``fires``: the share of its tokens on which the latent is active. ``code``: the latent's mean code on its tokens, in
    units of ``largest``. ``perplexity``: exp of the mean cross-entropy of its tokens. ``repetition``: the share of its
    pairs of neighbours that it had before. All texts are equally long.
    """
    lm, size = place.lm, len(written[0])
    texts = [[*prompt, *new] for prompt, new in zip(prompts, written, strict=True)]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    # (text, written token) the positions of the written tokens
    positions = torch.tensor([[len(text) - size + n for n in range(size)] for text in texts])
    for number, text in enumerate(texts):
        ids[number, : len(text)] = torch.tensor(text)
    ids, positions = ids.to(lm.device), positions.to(lm.device)

    with capture(lm, place.hook, [place.layer]) as seen:
        states = final_states(lm, ids)
    rows = torch.arange(len(texts), device=lm.device)[:, None]
    codes = columns(
        place.sae.to(lm.device).encode(seen[place.layer][rows, positions].flatten(0, 1).float()),
        torch.tensor([latent], device=lm.device),
    ).view(len(texts), size)

    # Each written token is predicted from the position before it.
    targets, before = ids[rows, positions].flatten(), states[rows, positions - 1].flatten(0, 1)
    losses = [
        torch.nn.functional.cross_entropy(logits(lm, part).float(), target, reduction="none")
        for part, target in zip(before.split(ROWS), targets.split(ROWS), strict=True)
    ]
    perplexity = torch.cat(losses).view(len(texts), size).double().mean(1).exp()
    return [
        {
            "fires": float((codes[n] > 0).double().mean()),
            "code": float(codes[n].double().mean()) / largest if largest else 0.0,
            "perplexity": float(perplexity[n]),
            "repetition": repetition(written[n]),
        }
        for n in range(len(texts))
    ]


def repetition(tokens: list[int]) -> float:
    """Compute the share of pairs of neighbours in ``tokens`` that occur before: 1/3 for [1, 2, 1, 2]."""
    pairs = list(pairwise(tokens))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
