"""Measure how well token rules tell where latents fire, beside twins and an untrained SAE.

A rule names a few tokens (strata/interpretation/rules.py). It is learned from half of the documents, and scored by
balanced accuracy on windows of the others, half of them firing and half silent. A dictionary whose latents stand for
something that a person can name has higher scores than one of random directions. Each latent of the SAE is compared
with one of the other dictionary that fires as often, since rarer latents are easier to name.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strata.evaluation.intervals import Measure, drawn_means, resampled
from strata.evaluation.knobs import TokenRules
from strata.interpretation import explanations
from strata.interpretation.explanations import Halves
from strata.interpretation.read import Columns
from strata.interpretation.text import read_text
from strata.measure.partners import firing, partners
from strata.rows.batches import blocks
from strata.rows.shards import Activations, Contexts
from strata.sae.sae import SAE

WINDOW = 32  # tokens
ITEMS = 20  # windows that a rule is scored on
LEAST = 20  # rows on which a latent has to fire
SCORE = "balanced_accuracy"


@torch.inference_mode()
def token_rules(
    sae: SAE, others: Mapping[str, SAE], activations: Activations, contexts: Contexts, knobs: TokenRules, seed: int
) -> dict[str, Any]:
    """Score the rules of latents of ``sae``, drawn at random, and of their partners in each of the ``others``.

    Returns the mean score of each, and how far the SAE's is ``above`` it, with intervals over latents. ``chance``: the
    same windows, judged by the rules of other latents. Or says ``why`` there is nothing to score.
    """
    rows = min(knobs.rows, activations.rows)

    def first_rows() -> Iterator[Tensor]:
        return blocks(activations, 0, rows, sae.b_dec.device)

    fires = firing(sae, first_rows())
    living = np.flatnonzero(fires.density * rows >= LEAST)
    if len(living) < 2:
        return {"why": f"fewer than 2 latents fire on {LEAST} of the first {rows} rows"}
    chosen = np.sort(np.random.default_rng([seed, rows]).permutation(living)[: knobs.latents]).tolist()

    with tempfile.TemporaryDirectory(prefix="strata-") as folder:
        opening = int(contexts.read(0, 1)[0][0, 0])
        text = read_text(contexts, Path(folder), min(WINDOW, contexts.meta["context"]))
        halves = explanations.split(text, opening, seed, rows=rows)
        own, chance = _scores(_columns(sae, chosen, first_rows()), halves)
        report: dict[str, Any] = {
            "latents": len(chosen),
            "rows": rows,
            "sae": _over_latents(own, seed),
            "chance": _over_latents(chance, seed),
            "controls": {},
            "above": {},
        }
        for name, other in others.items():
            partner_of = partners(fires.density, chosen, firing(other, first_rows()), seed)
            there, _ = _scores(_columns(other, list(partner_of.values()), first_rows()), halves)
            paired = own[[chosen.index(j) for j in partner_of]]
            report["controls"][name] = _over_latents(there, seed)
            report["above"][name] = _over_latents(paired - there, seed)
    return report


def _columns(sae: SAE, latents: Sequence[int], rows: Iterator[Tensor]) -> Columns:
    """Encode ``rows``, (row, width) in blocks, and keep the codes of ``latents``, in their order."""
    place = torch.full((sae.latents,), -1)
    place[torch.tensor(latents)] = torch.arange(len(latents))

    parts, first = [], 0
    for block in rows:
        codes = sae.encode(block.float()).to(torch.device("cpu"))
        column = place[codes.pattern.latents]
        kept = column >= 0
        parts.append((column[kept], codes.pattern.row_of[kept] + first, codes.values[kept].float()))
        first += len(block)

    column, row, values = (torch.cat(part) for part in zip(*parts, strict=True))
    order = torch.argsort(column, stable=True)  # within a latent the rows stay in their order
    starts = np.concatenate([[0], np.cumsum(np.bincount(column.numpy(), minlength=len(latents)))])
    return Columns(0, starts, row[order].numpy(), values[order].numpy())


def _scores(columns: Columns, halves: Halves) -> tuple[np.ndarray, np.ndarray]:
    """Learn and score the rule of each latent: (latent,) its score, and that by another one's rule; NaN: undefined."""
    _, found = explanations.by_rules(columns, halves, ITEMS, str)
    scores, chance = zip(*((one.scores[SCORE], one.scores[f"{SCORE}_chance"]) for one in found), strict=True)
    return np.array(scores, float), np.array(chance, float)


def _over_latents(values: np.ndarray, seed: int) -> Measure:
    """Average ``values`` (latent,), with an interval over latents drawn again. Undefined ones do not count."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return dict.fromkeys(("value", "low", "high"))
    return resampled(defined.mean(), drawn_means(defined[:, None], np.random.default_rng(seed))[:, 0])
