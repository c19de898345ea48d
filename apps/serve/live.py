"""Let the model write a text token by token, and say of each token which latents are active on it.

Codes are those that the pipeline would store of the text: each token is read in a context as extract makes one, by the
model that is not steered. So steering changes what is written, and not how it is read.
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import cached_property
from typing import Any

import torch
from fastapi import HTTPException
from torch import Tensor

from apps.serve.explainer import Explainer, by_row
from apps.serve.guard import Gate
from apps.serve.messages import Light, Line, Token, Write
from strata.lm.anatomy import last_states
from strata.lm.model import LanguageModel, logits, mute, pieces
from strata.run.door import BadInput
from strata.steering.steer import Add, steer

PROMPT = 1024  # tokens of a prompt
WRITINGS = 8  # texts that are written at the same time; any more are refused


class Desk:
    """The texts that are being written, each for one request."""

    def __init__(self, explainer: Explainer, gate: Gate) -> None:
        self._explainer, self._gate = explainer, gate
        self._writings = 0  # under way

    async def lines(self, asked: Write) -> AsyncGenerator[str, None]:
        """Begin a text, and return the lines of the answer: JSON of :class:`Line` each.

        Raises HTTPException: 503 where too many are being written, 422 where this one cannot be.
        """
        if self._writings >= WRITINGS:
            raise HTTPException(503, "too many texts are being written; try again soon", {"Retry-After": "1"})
        lines = self._written(asked)
        return _again(await anext(lines), lines)

    async def _written(self, asked: Write) -> AsyncGenerator[str, None]:
        """Yield the lines; between two tokens other requests may use the model."""
        self._writings += 1
        try:
            writing = Writing(self._explainer, asked)
            yield _line(Line(prompt=await self._gate.run(writing.prompt)))
            while not isinstance(found := await self._gate.run(writing.step), str):
                yield _line(Line(token=found))
            yield _line(Line(end=found, text=writing.text()))
        finally:  # also where nobody reads on
            self._writings -= 1


async def _again(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield ``first``, which was read already, and then ``rest``.

    The answer has begun, so that a refusal on the way is its last line, and not its status.
    """
    async with aclosing(rest):
        yield first
        try:
            async for line in rest:
                yield line
        except HTTPException as refusal:
            yield _line(Line(end=str(refusal.detail)))


def _line(line: Line) -> str:
    """Write a line of the answer, without the fields that it has not."""
    return line.model_dump_json(exclude_none=True) + "\n"


class Writing:
    """A text under way. ``asked``: what was asked for."""

    def __init__(self, explainer: Explainer, asked: Write) -> None:
        self._explainer, self._asked = explainer, asked
        self._random = torch.Generator().manual_seed(asked.seed)
        self._ids: list[int] = []  # the prompt, and what is written
        self._left = asked.tokens  # to write
        self._next: list[int] = []  # tokens that the steered model has yet to read
        self._cache: Any = None  # keys and values of those that it has read

    @property
    def _lm(self) -> LanguageModel:
        assert self._explainer.lm is not None, "prompt() has refused a server without one"
        return self._explainer.lm

    @cached_property
    def _special(self) -> set[int]:
        return set(self._lm.special_ids().tolist())

    @torch.inference_mode()
    def prompt(self) -> list[Token]:
        """Read the prompt, and return its tokens.

        Raises BadInput where nothing can be written: without a language model, and for a prompt or a latent that is not
        possible.
        """
        explainer = self._explainer
        if explainer.lm is None:
            raise BadInput("this server has no language model, which alone writes texts")
        if reason := mute(explainer.lm):
            raise BadInput(reason)

        self._ids = self._lm.read([self._asked.text])[0]
        size, positions = len(self._ids), self._lm.positions
        if size > PROMPT:
            raise BadInput(f"the prompt has {size} tokens; it may have {PROMPT}")
        if positions is not None and 1 + size + self._left > positions:
            raise BadInput(
                f"the model reads {positions} tokens at the most: BOS, {size} of the prompt, and not {self._left} more"
            )
        for latent in self._asked.steer:
            if not 0 <= latent < explainer.sae.latents:
                raise BadInput(f"steer: there is no latent {latent}; they are 0 to {explainer.sae.latents - 1}")
            if explainer.largest_code(latent) <= 0:
                raise BadInput(f"steer: latent {latent} is dead: nothing that interpret read makes it fire")

        self._next = [self._lm.bos, *self._ids]
        return self._tokens(self._ids, explainer.activations(self._ids)) if self._ids else []

    def step(self) -> Token | str:
        """Write one token and return it; at the end return why it ends."""
        written = self.write()
        return written if isinstance(written, str) else self._look(written)

    @torch.inference_mode()
    def write(self) -> int | str:
        """Write one token and return its id, without looking at latents; at the end return why it ends."""
        if not self._left:
            return "as many tokens as asked for"
        chosen = self._choose(self._advance())
        if chosen in _ends(self._lm):
            return "the model ends the text"

        self._left -= 1
        self._ids.append(chosen)
        self._next = [chosen]
        return chosen

    @torch.inference_mode()
    def _look(self, written: int) -> Token:
        """Return the token that was just ``written``, with what is active on it."""
        return self._tokens([written], self._explainer.last_activation(self._ids))[0]

    def text(self) -> str:
        """Return the prompt and what is written. A character may be made of several tokens, which say little alone."""
        return str(self._lm.tokenizer.decode(self._ids, clean_up_tokenization_spaces=False))

    def _advance(self) -> Tensor:
        """Let the steered model read what it has not read yet; return the logits of the next token, (vocabulary,)."""
        tokens = torch.tensor([self._next], device=self._lm.device)
        mask = torch.ones(1, 1 + len(self._ids), dtype=torch.long, device=self._lm.device)  # BOS and all others
        with self._steered():
            output = self._lm.trunk(input_ids=tokens, attention_mask=mask, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        return logits(self._lm, last_states(output)[:, -1])[0].float().cpu()

    def _steered(self) -> AbstractContextManager[None]:
        """Steer the model inside the block, and in no pass of another request."""
        explainer = self._explainer
        changes = {
            latent: Add(strength * explainer.largest_code(latent))
            for latent, strength in self._asked.steer.items()
            if strength
        }
        return steer(self._lm, explainer.sae, changes, *explainer.point) if changes else nullcontext()

    def _choose(self, scores: Tensor) -> int:
        """Return the likeliest token, or with a temperature one that is drawn.

        Raises BadInput where a score is not finite, which strong steering can do to a model in float16.
        """
        if not torch.isfinite(scores).all():
            raise BadInput("the model's predictions are not finite any more; steer less")
        if not self._asked.temperature:
            return int(scores.argmax())
        chances = ((scores - scores.max()).double() / self._asked.temperature).softmax(0)
        return int(torch.multinomial(chances, 1, generator=self._random))

    def _tokens(self, ids: list[int], x: Tensor) -> list[Token]:
        """Put each of ``ids`` beside the latents that are active on it; special tokens have none.

        ``x``: (token, width) their activations.
        """
        explainer, result = self._explainer, []
        rows = by_row(explainer.codes(x))
        for token, piece, (latents, values) in zip(ids, pieces(self._lm.tokenizer, ids), rows, strict=True):
            lights = [] if token in self._special else _lights(explainer, latents, values, self._asked.top_n)
            result.append(Token(token=piece, latents=lights))
        return result


def _ends(lm: LanguageModel) -> set[int]:
    """Return the tokens that end a text: those of the model's own settings, and the tokenizer's EOS."""
    settings = getattr(lm.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    ends = named if isinstance(named, list) else [named]
    return {end for end in [*ends, lm.tokenizer.eos_token_id] if isinstance(end, int)}


def _lights(explainer: Explainer, latents: Tensor, values: Tensor, most: int) -> list[Light]:
    """Return the ``most`` latents that are most special among those active on one token.

    ``latents``, ``values``: (active,) which they are, and their codes.
    """
    special = values * explainer.weights[latents]
    order = special.argsort(descending=True, stable=True)[:most].tolist()
    return [
        Light(
            latent=(latent := int(latents[place])),
            code=float(values[place]),
            share=explainer.share(latent, float(values[place])),
            name=explainer.names.get(latent),
        )
        for place in order
        if special[place] > 0
    ]
