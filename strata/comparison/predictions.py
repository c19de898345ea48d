"""Measure what predictions cost, document by document, where SAEs' reconstructions take the place of activations."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from strata.lm.model import Hook, LanguageModel, edit, final_states, logits, shared_start
from strata.sae.sae import SAE
from strata.splicing.held_out import Texts

Floats = NDArray[np.float64]
MOST = 256  # documents
BATCH = 8  # contexts that go through the model at a time
CHUNK = 128  # predictions whose logits are in memory at a time


@torch.inference_mode()
def delta_ce(
    groups: Sequence[Sequence[SAE]], contexts: Texts, hook: Hook, layer: int, lm: LanguageModel, tokens: int
) -> tuple[list[Floats], Floats]:
    """Measure CE_sae − CE_clean of every SAE, in nats.

    About ``tokens`` held-out tokens are predicted: equally many of up to MOST documents, the last ones of the first
    context of each. All SAEs predict the same tokens. Special positions are neither replaced nor predicted.

    Returns the sums over the tokens of a document, (sae, document) for each of ``groups``, and the number of tokens,
    (document,).
    """
    ids, documents = contexts.read(*contexts.split("test"))
    chosen, predicted = _chosen(documents, tokens)
    ids, documents = torch.from_numpy(ids[chosen]).long(), torch.from_numpy(documents[chosen])
    wanted = torch.from_numpy(predicted[chosen])  # (context, position - 1)
    number = documents.unique(return_inverse=True)[1]  # (context, position)

    saes = [sae for group in groups for sae in group]
    count = torch.zeros(int(number.max()) + 1, dtype=torch.float64)
    sums = torch.zeros(len(saes), len(count), dtype=torch.float64)
    for first in range(0, len(ids), BATCH):
        part = slice(first, first + BATCH)
        batch, kept, mask = ids[part].to(lm.device), (documents[part] >= 0).to(lm.device), wanted[part]
        targets, of_document = batch[:, 1:].cpu()[mask], number[part][:, 1:][mask]
        count.index_add_(0, of_document, torch.ones(len(of_document), dtype=torch.float64))

        with shared_start(lm, layer):
            clean = _ce(lm, final_states(lm, batch), mask, targets)
            for place, sae in enumerate(saes):
                with edit(lm, hook, layer, lambda x, sae=sae, kept=kept: _replaced(x, kept, sae)):
                    spliced = _ce(lm, final_states(lm, batch), mask, targets)
                sums[place].index_add_(0, of_document, spliced - clean)

    # Documents without a token that is predicted, and what is no document, do not count.
    some = count > 0
    by_sae = iter(sums[:, some].numpy())
    return [np.stack([next(by_sae) for _ in group]) for group in groups], count[some].numpy()


def _chosen(documents: NDArray[np.integer], tokens: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Choose contexts and tokens. ``documents``: (context, position), -1 where a position is no row.

    Returns the numbers of the contexts, and (context, position - 1) whether the next position's token is predicted.
    """
    known = np.unique(documents[documents >= 0])
    known = known[np.linspace(0, len(known) - 1, min(MOST, len(known))).round().astype(np.int64)]
    each = max(1, tokens // len(known))

    predicted = np.zeros((len(documents), documents.shape[1] - 1), np.bool_)
    chosen = []
    for document in known:
        of_it = documents[:, 1:] == document
        context = int(of_it.any(1).argmax())
        predicted[context, np.flatnonzero(of_it[context])[-each:]] = True
        chosen.append(context)
    return np.unique(chosen), predicted


def _replaced(x: Tensor, kept: Tensor, sae: SAE) -> Tensor:
    """Return ``x`` (context, position, width) with the reconstruction in place of the rows that are ``kept``."""
    out = x.clone()
    out[kept] = sae.reconstruct(x[kept].float().to(sae.b_dec.device))[0].to(x.device, x.dtype)
    return out


def _ce(lm: LanguageModel, states: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each prediction, (prediction,) float64, from the last hidden ``states``."""
    predicting = states[:, :-1][mask.to(states.device)]  # (prediction, width)
    parts = [
        cross_entropy(
            logits(lm, predicting[first : first + CHUNK]).float(),
            targets[first : first + CHUNK].to(states.device),
            reduction="none",
        )
        for first in range(0, len(targets), CHUNK)
    ]
    return torch.cat(parts).double().cpu() if parts else torch.zeros(0, dtype=torch.float64)
