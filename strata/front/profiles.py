"""From prompts to the codes of the latents that are worth a look, in one call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from strata import defaults
from strata.corpus import read as corpus
from strata.device.machine import CPU, put
from strata.front.activations import LayerActivations, activations
from strata.front.files import sae_of
from strata.interpretation import interpret
from strata.interpretation.knobs import Interpret
from strata.interpretation.statistics import entropies, importance
from strata.run import door
from strata.run.params import Hook
from strata.run.progress import each
from strata.sae.sae import SAE

BLOCK = 4096  # rows that are encoded at a time


@dataclass(frozen=True)
class Profiles:
    """How strongly each prompt makes latents of an SAE fire; only the latents that the filters keep.

    ``codes``: (prompt, kept latent) float32, sparse: the mean code over the prompt's tokens, special ones left out.
    ``latents``: (kept latent,) their numbers in the SAE. ``prompts``: the texts, in the order in which they were given;
    one without a token is left out. ``table``: a line a latent of the SAE, with what the filters look at and, in
    ``dropped``, which of them drops it.
    """

    codes: csr_array = field(repr=False)
    latents: NDArray[np.int64]
    prompts: list[str] = field(repr=False)
    table: pd.DataFrame = field(repr=False)


def profiles(
    lm: Any,
    sae: Any,
    prompts: Iterable[str],
    layer: int,
    context: int = 128,
    hook: Hook = "resid_post",
    filters: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Profiles:
    """Run ``lm`` over ``prompts``, encode their tokens by ``sae``, and keep the latents that the filters keep.

    ``lm``, ``layer``, ``context`` and ``hook``: as :func:`strata.activations` takes them. ``filters``: changes of
    interpret.filters of params.yaml, which bound the entropy over prompts as a share of its maximum, the share of the
    prompts in which a latent fires, its importance, and its quadrant (of entropy and varentropy). ``device``: where the
    SAE encodes; ``lm`` stays where it is, and ``sae`` itself is not moved. Nothing is left on disk.

    Raises BadInput for all that :func:`strata.activations` refuses (fewer than three prompts, for one), for an SAE of
    another width than the rows, and for a filter that does not exist or fit.

    >>> found = strata.profiles(lm, sae, prompts, layer=6, filters={"firing": {"min": 0.1}})  # doctest: +SKIP
    >>> found.codes.shape, found.latents, found.table["dropped"].value_counts()           # doctest: +SKIP
    """
    model = sae_of(sae)
    where = door.device(device)
    settings = defaults.knobs("interpret", Interpret, {"filters": dict(filters or {})})
    texts = list(prompts) if not isinstance(prompts, str) else prompts  # activations refuses one text
    rows = activations(lm, texts, door.whole("layer", layer, 0), context, hook, titles=range(len(texts)))[layer]
    interpret.check(model, rows.activations)

    codes, table, numbers = _codes(model.to(where), rows, where)
    table |= interpret.verdicts(table, len(numbers), settings.filters)
    kept = np.flatnonzero(table["kept"])
    return Profiles(codes[:, kept], kept, [texts[number] for number in numbers], pd.DataFrame(table))


@torch.inference_mode()
def _codes(sae: SAE, rows: LayerActivations, device: torch.device) -> tuple[csr_array, dict[str, Any], list[int]]:
    """Return mean codes (prompt, latent), the statistics of every latent, and the number of each prompt.

    The prompts here are those that have rows. Their numbers are their places in the list that the user gave.
    """
    # The corpus is shuffled and split, so a row leads to its document, and the document's title to the number of its
    # prompt. Rows are stored split by split. ``document`` and ``prompt``: (row,); ``numbers``: (prompt,), ascending.
    document = np.concatenate([rows.contexts.rows(split)[1] for split in corpus.SPLITS])
    number_of = np.array([int(str(title)) for title in corpus.titles(rows.corpus)[0]])
    numbers, prompt = np.unique(number_of[document], return_inverse=True)
    shape = (len(numbers), sae.latents)

    total, active = csr_array(shape, dtype=np.float64), np.zeros(sae.latents, np.int64)
    for first in each(range(0, len(rows), BLOCK), "encode", "blocks"):
        found = sae.encode(put(rows.read(first, min(first + BLOCK, len(rows))), device).float()).to(CPU)
        latent, row, value = (t.numpy() for t in (found.pattern.latents, found.pattern.row_of, found.values))
        total = total + csr_array((value.astype(np.float64), (prompt[first + row], latent)), shape=shape)
        active += np.bincount(latent, minlength=sae.latents)

    of_prompt = np.bincount(prompt)  # (prompt,) its tokens
    mean = csr_array(total.multiply(1 / of_prompt[:, None]))
    at = mean.tocoo()
    entropy, varentropy = entropies(at.col, at.data, sae.latents)
    table: dict[str, Any] = {
        "latent": np.arange(sae.latents),
        "density": active / len(rows),
        "mean": total.sum(0) / np.maximum(active, 1),
        "documents": np.bincount(at.col, minlength=sae.latents),
        "entropy": entropy,
        "entropy_share": entropy / np.log(len(numbers)) if len(numbers) > 1 else np.full(sae.latents, np.nan),
        "varentropy": varentropy,
        "dead": active == 0,
        "decoder_norm": sae.decoder.norm(dim=1).cpu().numpy(),
    }
    table["importance"] = importance(table)
    return csr_array(mean, dtype=np.float32), table, numbers.tolist()
