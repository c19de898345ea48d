"""The tokens that a prompt may be made of, and whether a prompt survives being written down."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from strata.inversion.objective import check_embeddings, embeddings
from strata.lm.model import LanguageModel
from strata.run.door import BadInput

DRAWS = 100  # rounds of random prompts of which none survives, before the search for one is given up
TRIED = 8  # tokens on which embeddings are compared with the tokens that they are of


@dataclass(frozen=True)
class Vocabulary:
    """``allowed``: (vocabulary,) whether a token may be chosen. ``prefix``: the tokens that open every prompt."""

    lm: LanguageModel
    allowed: Tensor
    prefix: Tensor

    def text(self, prompt: Tensor | Sequence[int]) -> str:
        """A prompt (token,) written down."""
        return self.texts(torch.as_tensor(prompt)[None])[0]

    def texts(self, prompts: Tensor) -> list[str]:
        """Prompts (prompt, token) written down."""
        return self.lm.tokenizer.batch_decode(prompts.tolist(), clean_up_tokenization_spaces=False)

    def pieces(self, tokens: list[int]) -> list[str]:
        """What each token adds to the text of those before it."""
        grown = ["", *(self.text(tokens[: end + 1]) for end in range(len(tokens)))]
        return [now[len(before) :] for before, now in pairwise(grown)]

    def read(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts, without BOS."""
        return self.lm.read(texts)

    def survive(self, prompts: Tensor) -> Tensor:
        """(prompt,) whether the text of each prompt (prompt, token) has its very tokens."""
        if not len(prompts):
            return torch.zeros(0, dtype=torch.bool, device=prompts.device)
        same = [a == b for a, b in zip(self.read(self.texts(prompts)), prompts.tolist(), strict=True)]
        return torch.tensor(same, device=prompts.device)

    def random(self, count: int, tokens: int, rng: torch.Generator) -> Tensor:
        """(count, tokens) random prompts that survive: the prefix, then allowed tokens, each as likely as another."""
        choices, found = self.allowed.nonzero().flatten().cpu(), torch.empty(0, tokens, dtype=torch.long)
        for _ in range(DRAWS):
            free = choices[torch.randint(len(choices), (count, tokens - len(self.prefix)), generator=rng)]
            drawn = torch.cat([self.prefix.cpu().expand(count, -1), free], dim=1)
            found = torch.cat([found, drawn[self.survive(drawn)]])[:count]
            if len(found) == count:
                return found.to(self.lm.device)
        raise BadInput(
            f"params.yaml: invert.keep_prefix: {self.text(self.prefix)!r} and random tokens after it are other tokens "
            "when their text is read again; end it with a whole word"
        )


def vocabulary(lm: LanguageModel, prefix: str, tokens: int) -> Vocabulary:
    """The tokens that are not special, not unused, and come back when their text alone is read; and the ``prefix``."""
    rows, _ = embeddings(lm)
    made = Vocabulary(lm, torch.zeros(len(rows), dtype=torch.bool), torch.empty(0, dtype=torch.long))
    start = torch.tensor(made.read([prefix])[0], dtype=torch.long)
    _check(lm, start, prefix, tokens)
    count = min(len(rows), len(lm.tokenizer))
    ids = torch.arange(count)
    made.allowed[:count] = made.survive(ids[:, None])
    made.allowed[lm.special_ids().cpu()] = False
    marks = lm.tokenizer.convert_ids_to_tokens(ids.tolist())
    made.allowed[[i for i, mark in enumerate(marks) if mark is None or mark.startswith("<unused")]] = False
    if not made.allowed.any():
        raise BadInput(f"no token of {lm.model.name_or_path} comes back when its text is read; there is none to choose")
    check_embeddings(lm, made.allowed.nonzero()[:TRIED, 0].to(lm.device))
    return Vocabulary(lm, made.allowed.to(lm.device), start.to(lm.device))


def _check(lm: LanguageModel, start: Tensor, prefix: str, tokens: int) -> None:
    """Refuse a prefix, and a length, that leave no room."""
    window = lm.positions
    if window is not None and max(tokens, len(start)) + 1 > window:
        raise BadInput(
            f"params.yaml: invert: {max(tokens, len(start))} tokens and BOS are more than the {window} that "
            f"{lm.model.name_or_path} reads"
        )
    if len(start) >= tokens:
        raise BadInput(
            f"params.yaml: invert.keep_prefix: {prefix!r} is {len(start)} tokens, which leaves none of "
            f"invert.tokens: {tokens} to choose"
        )
    if torch.isin(start, lm.special_ids().cpu()).any():
        raise BadInput(f"params.yaml: invert.keep_prefix: {prefix!r} holds a special token; BOS is put in front of it")
