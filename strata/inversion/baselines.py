"""The baselines that a search has to beat: as many random prompts, and sentences made of a latent's own tokens."""

from itertools import permutations

import torch
from torch import Tensor

from strata.inversion.objective import BATCH, Objective, embedded, reads, states
from strata.inversion.vocabulary import Vocabulary
from strata.lm.model import Hook
from strata.sae.sae import SAE

TEMPLATES = ("{0} {1}", "{0}, {1}", "{0} and {1}", "The {0} of {1}.")


class RandomSearch:
    """One stream of random prompts, and h of several latents on them. It is made only as far as it is needed.

    The other searches start from the beginning of the same stream. So each is compared with a random search that had
    the same luck, and went on as long.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        sae: SAE,
        hook: Hook,
        layer: int,
        latents: list[int],
        tokens: int,
        rng: torch.Generator,
    ) -> None:
        self._vocabulary, self._sae, self._layer = vocabulary, sae, layer
        self._hook: Hook = hook
        self._latents, self._tokens, self._rng = latents, tokens, rng
        self._directions, self._biases = reads(sae, latents)
        self._prompts: list[Tensor] = []
        self._heights: list[Tensor] = []
        self._peaks: list[Tensor] = []

    def upto(self, count: int, latent: int) -> tuple[Tensor, Tensor]:
        """Return the first ``count`` prompts (prompt, token), and the largest h of ``latent`` on each (prompt,)."""
        while len(self._prompts) * BATCH < count:
            self._more()
        heights = torch.cat(self._heights)[:count, self._latents.index(latent)]
        return torch.cat(self._prompts)[:count], heights

    def starts(self, pool: int, latent: int, count: int) -> Tensor:
        """Return the ``count`` best of the first ``pool`` prompts, (count, token), rotated so that the peak comes last.

        The searches climb on h at the last token. The prefix is not moved.
        """
        prompts, heights = self.upto(pool, latent)
        order = heights.argsort(descending=True, stable=True)[:count]

        # A peak is counted from the first token behind the prefix.
        frozen, peaks = len(self._vocabulary.prefix), torch.cat(self._peaks)[:pool, self._latents.index(latent)]
        rotated = [
            torch.cat([prompt[:frozen], prompt[frozen + peak + 1 :], prompt[frozen : frozen + peak + 1]])
            for prompt, peak in zip(prompts[order], peaks[order].tolist(), strict=True)
        ]
        return torch.stack(rotated) if rotated else prompts[:0]

    @torch.no_grad()
    def _more(self) -> None:
        """Make the next BATCH prompts, and measure all latents on them."""
        lm, frozen = self._vocabulary.lm, len(self._vocabulary.prefix)
        prompts = self._vocabulary.random(BATCH, self._tokens, self._rng)

        # (prompt, free token, width), without BOS and the prefix; then (prompt, free token, latent).
        x = states(lm, self._hook, self._layer, embedded(lm, prompts))[:, 1 + frozen :].float()
        h = (x - self._sae.b_dec) @ self._directions.T + self._biases

        self._prompts.append(prompts)
        heights, peaks = h.max(1)
        self._heights.append(heights)
        self._peaks.append(peaks)


def templates(objective: Objective, vocabulary: Vocabulary, words: list[str], tokens: int) -> Tensor | None:
    """Find the best prompt (token,) that the :data:`TEMPLATES` make of ordered pairs of ``words``.

    Prompts are cut to ``tokens``. Those of one length run together, so that there is no padding. Returns None where
    there is no pair.
    """
    words = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    texts = [template.format(*pair) for pair in permutations(words, 2) for template in TEMPLATES]
    opening = vocabulary.text(vocabulary.prefix)
    opening += " " * bool(opening and not opening[-1].isspace())
    token_lists = vocabulary.read([opening + text for text in texts]) if texts else []
    candidates = [torch.tensor(prompt[:tokens]) for prompt in token_lists]

    best_prompt, best_height = None, -torch.inf
    for length in sorted({len(prompt) for prompt in candidates}):
        prompts = torch.stack([prompt for prompt in candidates if len(prompt) == length]).to(vocabulary.prefix.device)
        heights = objective.highest(prompts)
        if heights.max() > best_height:
            best_prompt, best_height = prompts[heights.argmax()], float(heights.max())
    return best_prompt
