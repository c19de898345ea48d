"""How a reconstructor does on the held-out text of a layer: what train says of an SAE, and merge of a smaller one."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from strata.lm.model import Hook, LanguageModel
from strata.measure import quality
from strata.rows.batches import Rows, blocks
from strata.splicing import splice


class Texts(Protocol):
    """The contexts that the rows come from, as extract's reader opens them."""

    def split(self, name: str) -> tuple[int, int]:
        """First context of train, validation or test, and the one after its last."""
        ...

    def read(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and documents of contexts first … end-1, (context, position); -1 where there is no row."""
        ...


@torch.inference_mode()
def held_out(
    candidates: Mapping[str, quality.Reconstruct],
    activations: Rows,
    contexts: Texts,
    hook: Hook,
    lm: LanguageModel | None,
    ce_tokens: int,
    device: torch.device,
) -> tuple[dict[str, dict[str, Any]], int]:
    """mse, fvu, fvu_inlier, l0, cosine and the ce metrics of each candidate on the test rows.

    The ce metrics are those of the first ``ce_tokens`` held-out tokens or a few more, whole contexts; null without an
    ``lm``. Returns how many tokens that were, too.
    """
    first, end = activations.split("test")
    quality.check_held_out(activations, "test")
    scale, norm = activations.scale, activations.median_norm
    found = {
        name: quality.reconstruction(f, blocks(activations, first, end, device), scale, norm)
        for name, f in candidates.items()
    }
    ce, predicted = _cross_entropy(candidates, activations, contexts, hook, lm, ce_tokens)
    return {name: values | ce[name] for name, values in found.items()}, predicted


def _cross_entropy(
    candidates: Mapping[str, quality.Reconstruct],
    activations: Rows,
    contexts: Texts,
    hook: Hook,
    lm: LanguageModel | None,
    budget: int,
) -> tuple[dict[str, dict[str, float | None]], int]:
    if lm is None or budget == 0:
        return {name: dict.fromkeys(splice.METRICS) for name in candidates}, 0
    tokens, documents = contexts.read(*contexts.split("test"))
    kept = documents >= 0
    enough = int(np.searchsorted(kept[:, 1:].sum(1).cumsum(), budget)) + 1
    replaces: dict[str, splice.Replace] = {name: lambda x, f=f: f(x.float())[0] for name, f in candidates.items()}
    replaces["zero"] = lambda x: torch.zeros_like(x)
    replaces.setdefault("mean", lambda x: activations.mean.to(x.device).expand_as(x))
    rows = torch.from_numpy(tokens[:enough]), torch.from_numpy(kept[:enough])
    verdicts = splice.verdict(lm, *rows, hook, activations.layer, replaces)
    return {name: splice.scores(verdicts, name) for name in candidates}, int(kept[:enough, 1:].sum())
