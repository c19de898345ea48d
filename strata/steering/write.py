"""What the model writes while it is steered, read back by the model as it is."""

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
    """What follows each of the ``prompts`` under each condition and strength, ``tokens`` long, the likeliest each time.

    All at once, condition by condition: the model is read from memory once a step, however many texts there are. No
    text ends early. Prompts are padded on the left.
    """
    longest, lm = max(map(len, prompts)), place.lm
    one = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(one)
    for number, prompt in enumerate(prompts):
        one[number, longest - len(prompt) :] = torch.tensor(prompt)
        mask[number, longest - len(prompt) :] = 1
    ids, masks = (x.repeat(len(steered), 1).to(lm.device) for x in (one, mask))
    strengths = torch.tensor([strength for _, strength in steered]).repeat_interleave(len(prompts))
    names = list({condition.name: condition for condition, _ in steered if condition}.values())
    with ExitStack() as stack:
        for condition in names:
            mine = torch.tensor([float(one is condition) for one, _ in steered]).repeat_interleave(len(prompts))
            stack.enter_context(condition.applied(place, strengths * mine))
        found = lm.model.generate(  # pyright: ignore[reportCallIssue]
            ids,
            attention_mask=masks,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            top_k=None,
            top_p=None,
            pad_token_id=0,
        )
    return found[:, longest:].tolist()


@torch.inference_mode()
def read_back(
    place: Place, prompts: list[list[int]], written: list[list[int]], latent: int, largest: float
) -> list[Written]:
    """Of each text ``written`` after its prompt, by the model that is not steered:

    ``fires``: share of its tokens on which the latent is active; ``code``: their mean code, in units of ``largest``;
    ``perplexity``: exp of the mean cross-entropy of its tokens; ``repetition``: share of its pairs of neighbours that
    stood in it before.
    """
    lm, size = place.lm, len(written[0])
    texts = [[*prompt, *new] for prompt, new in zip(prompts, written, strict=True)]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    at = torch.tensor([[len(text) - size + n for n in range(size)] for text in texts])
    for number, text in enumerate(texts):
        ids[number, : len(text)] = torch.tensor(text)
    ids, at = ids.to(lm.device), at.to(lm.device)
    with capture(lm, place.hook, [place.layer]) as seen:
        states = final_states(lm, ids)
    rows = torch.arange(len(texts), device=lm.device)[:, None]
    codes = columns(
        place.sae.to(lm.device).encode(seen[place.layer][rows, at].flatten(0, 1).float()),
        torch.tensor([latent], device=lm.device),
    ).view(len(texts), size)
    targets, before = ids[rows, at].flatten(), states[rows, at - 1].flatten(0, 1)
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
    """Share of the pairs of neighbours in ``tokens`` that are there already further left: [1, 2, 1, 2] has 1 in 3."""
    pairs = list(pairwise(tokens))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
