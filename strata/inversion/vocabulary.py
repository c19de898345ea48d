"""The tokens that a prompt may be made of, and whether a prompt survives being written down."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from strata.inversion.objective import check_embeddings, embeddings
from strata.lm.model import LanguageModel
from strata.run.door import BadInput

DRAWS = 100  # rounds of random prompts after which the search for prompts that survive is given up
TRIED = 8  # tokens whose embeddings are compared with the tokens themselves


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a search may choose from.

    ``allowed``: (vocabulary,) whether a token may be chosen. ``prefix``: the tokens that open every prompt.
    """

    lm: LanguageModel
    allowed: Tensor
    prefix: Tensor

    def text(self, prompt: Tensor | Sequence[int]) -> str:
        """Write a prompt (token,) as text."""
        return self.texts(torch.as_tensor(prompt)[None])[0]

    def texts(self, prompts: Tensor) -> list[str]:
        """Write prompts (prompt, token) as texts."""
        return self.lm.tokenizer.batch_decode(prompts.tolist(), clean_up_tokenization_spaces=False)

    def pieces(self, tokens: list[int]) -> list[str]:
        """Return what each token adds to the text of the tokens before it."""
        beginnings = ["", *(self.text(tokens[: end + 1]) for end in range(len(tokens)))]
        return [longer[len(shorter) :] for shorter, longer in pairwise(beginnings)]

    def read(self, texts: list[str]) -> list[list[int]]:
        """Read texts as tokens, without BOS."""
        return self.lm.read(texts)

    def survive(self, prompts: Tensor) -> Tensor:
        """Check whether each prompt (prompt, token), written as text and read again, has the same tokens, (prompt,)."""
        if not len(prompts):
            return torch.zeros(0, dtype=torch.bool, device=prompts.device)
        same = [a == b for a, b in zip(self.read(self.texts(prompts)), prompts.tolist(), strict=True)]
        return torch.tensor(same, device=prompts.device)

    def random(self, count: int, tokens: int, rng: torch.Generator) -> Tensor:
        """Draw ``count`` random prompts that survive, (count, tokens): prefix, then allowed tokens, all equally likely.

        Raises BadInput if too few of DRAWS × count prompts survive.
        """
        choices, prompts = self.allowed.nonzero().flatten().cpu(), torch.empty(0, tokens, dtype=torch.long)
        for _ in range(DRAWS):
            free = choices[torch.randint(len(choices), (count, tokens - len(self.prefix)), generator=rng)]
            drawn = torch.cat([self.prefix.cpu().expand(count, -1), free], dim=1)
            prompts = torch.cat([prompts, drawn[self.survive(drawn)]])[:count]
            if len(prompts) == count:
                return prompts.to(self.lm.device)
        raise BadInput(
            f"params.yaml: invert.keep_prefix: {self.text(self.prefix)!r} and random tokens after it are other tokens "
            "when their text is read again; end it with a whole word"
        )


def vocabulary(lm: LanguageModel, prefix: str, tokens: int) -> Vocabulary:
    """Find the tokens that a prompt may be made of, and read the ``prefix``.

    Allowed is each token that is not special, not unused, and that comes back when its text alone is read. Raises
    BadInput if none is, or if prefix and ``tokens`` leave no room.
    """
    rows, _ = embeddings(lm)
    words = Vocabulary(lm, torch.zeros(len(rows), dtype=torch.bool), torch.empty(0, dtype=torch.long))
    start = torch.tensor(words.read([prefix])[0], dtype=torch.long)
    _check(lm, start, prefix, tokens)

    # The table may have more rows than the tokenizer has tokens.
    count = min(len(rows), len(lm.tokenizer))
    ids = torch.arange(count)
    words.allowed[:count] = words.survive(ids[:, None])
    words.allowed[lm.special_ids().cpu()] = False
    marks = lm.tokenizer.convert_ids_to_tokens(ids.tolist())
    words.allowed[[i for i, mark in enumerate(marks) if mark is None or mark.startswith("<unused")]] = False
    if not words.allowed.any():
        raise BadInput(f"no token of {lm.model.name_or_path} comes back when its text is read; there is none to choose")

    check_embeddings(lm, words.allowed.nonzero()[:TRIED, 0].to(lm.device))
    return Vocabulary(lm, words.allowed.to(lm.device), start.to(lm.device))


def _check(lm: LanguageModel, start: Tensor, prefix: str, tokens: int) -> None:
    """Raise BadInput if a prefix, read as ``start``, and a length of ``tokens`` leave no room."""
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
