"""Make the prompts, held-out and the user's own, and find the tokens that a latent should make more likely."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from strata.interpretation.read import Latents
from strata.lm.model import LanguageModel
from strata.rows.shards import Contexts
from strata.run.door import BadInput


@dataclass(frozen=True)
class Texts:
    """Texts as tokens.

    ``tokens``: (text, position) int64, padded on the right with 0. ``lengths``: (text,), BOS included. ``scored``:
    (text, position) bool, the tokens after which the prediction is measured.
    """

    tokens: Tensor
    lengths: Tensor
    scored: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, first: int, end: int) -> "Texts":
        """Take the texts ``first`` to ``end`` - 1."""
        return Texts(self.tokens[first:end], self.lengths[first:end], self.scored[first:end])

    def lists(self) -> list[list[int]]:
        """List the tokens of each text, without padding."""
        return [row[: int(n)].tolist() for row, n in zip(self.tokens, self.lengths, strict=True)]


def padded(texts: list[list[int]], scored: int) -> Texts:
    """Pad ``texts``, which are lists of tokens. The last ``scored`` tokens of each are scored, but never BOS."""
    lengths = torch.tensor([len(text) for text in texts], dtype=torch.long)
    tokens = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for number, text in enumerate(texts):
        tokens[number, : len(text)] = torch.tensor(text)

    place, end = torch.arange(tokens.shape[1]), lengths[:, None]
    return Texts(tokens, lengths, (place < end) & (place >= (end - scored).clamp(min=1)))


def prompts(
    lm: LanguageModel, texts: list[str], contexts: Contexts, count: int, tokens: int, scored: int, written: int = 0
) -> Texts:
    """Make the prompts: the user's ``texts``, then ``count`` beginnings of held-out contexts, ``tokens`` long.

    The contexts come from all over the split. The last ``scored`` tokens of each prompt are scored. Raises BadInput if
    the model has no room for ``written`` tokens behind a prompt.
    """
    if lm.positions is not None and 1 + tokens + written > lm.positions:
        raise BadInput(
            f"params.yaml: steer_eval.tokens is {tokens} and generate.tokens {written}; with BOS the model reads at "
            f"most {lm.positions} tokens"
        )
    return padded([_tokens_of(lm, text, written) for text in texts] + held_out(contexts, count, tokens), scored)


def _tokens_of(lm: LanguageModel, text: str, written: int) -> list[int]:
    """Read one of the user's texts, with BOS in front. Raises BadInput if it is empty or too long."""
    tokens = [lm.bos, *lm.read([text])[0]]
    if len(tokens) == 1:
        raise BadInput(f"params.yaml: the prompt {text!r} of steer_eval.texts holds no token besides BOS")
    if lm.positions is not None and len(tokens) + written > lm.positions:
        raise BadInput(
            f"params.yaml: a prompt of steer_eval.texts has {len(tokens)} tokens, and {written} are written behind it; "
            f"the model reads {lm.positions}"
        )
    return tokens


def held_out(contexts: Contexts, count: int, tokens: int) -> list[list[int]]:
    """Take ``count`` beginnings of test contexts, evenly spread: BOS and ``tokens`` tokens of one document each.

    Other texts, on which no SAE was trained, may have no test contexts: then all of theirs count as such. Raises
    BadInput if there are too few.
    """
    first, end = contexts.split("test")
    ids, documents = contexts.read(first, end) if first < end else contexts.read(0, end)
    if tokens >= ids.shape[1]:
        raise BadInput(
            f"params.yaml: steer_eval.tokens is {tokens}, but a context has {ids.shape[1]} tokens, BOS included"
        )

    # The contexts whose beginning is of one document. A position of no document is below 0.
    owners = documents[:, 1 : tokens + 1]
    usable = np.flatnonzero((owners >= 0).all(1) & (owners == owners[:, :1]).all(1))
    if len(usable) < count:
        raise BadInput(
            f"params.yaml: steer_eval.prompts is {count}, but {len(usable)} test contexts begin with "
            f"{tokens} tokens of one document; lower steer_eval.prompts or steer_eval.tokens"
        )
    chosen = usable[np.linspace(0, len(usable) - 1, count).round().astype(int)]
    return ids[chosen, : tokens + 1].astype(int).tolist()


def next_tokens(latents: Latents, latent: int, count: int) -> Tensor:
    """List the tokens that follow the peaks of the latent's ``count`` strongest examples, (token,).

    A token is listed each time it follows. An example that ends with its peak is passed over.
    """
    table = latents.table("examples", ["tokens", "values"], [("latent", "=", latent), ("kind", "=", "top")])
    following = []
    for row in [] if table is None else table.to_pylist():
        after = int(np.argmax(row["values"])) + 1
        if after < len(row["tokens"]):
            following.append(row["tokens"][after])
    return torch.tensor(following[:count], dtype=torch.long)


def promoted_tokens(latents: Latents, latent: int, count: int) -> Tensor:
    """List the ``count`` tokens that the latent's logit lens puts first, (token,).

    There are none where interpret could not read the model's last steps.
    """
    table = latents.table("logits", ["side", "token"], [("latent", "=", latent), ("side", "=", "promoted")])
    return torch.tensor([] if table is None else table["token"].to_pylist()[:count], dtype=torch.long)
