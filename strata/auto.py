"""The values of `auto` in params.yaml: pure functions of the kind of rows, their number, and their width.

With a language model a row is a token, and `auto` has fixed values. With the kinds `sentence` and `vectors` a row is a
document: there are only as many rows as the user has documents, so the values depend on their number. A value that is
written as a number stays as it is.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

from strata.rows.size import DOCUMENTS, Size
from strata.run.door import BadInput

AUTO = "auto"

TOKENS: dict[str, Any] = {"latents": 4096, "k": 80, "batch_size": 1024, "epochs": 5, "init": "kaiming"}
TOKEN_TARGETS = {"mse.max": 0.01, "l0.min": 50, "l0.max": 100, "fvu_inlier.max": 0.12}
TOKEN_FILTERS = {"min_chars": 200, "near_duplicates": 0.8}  # keep captions and repeated texts from a language model

# How the values of documents were chosen: docs/embeddings.md; reports/log.md has the measurements.
ROWS_A_LATENT, LATENTS_A_NUMBER, LEAST_LATENTS, MOST_LATENTS = 8, 16, 16, 4096  # latents by rows, and by width
NUMBERS_A_K, LATENTS_A_K, LEAST_K, MOST_K = 12, 8, 4, 32  # numbers of a row, and latents, for one active latent
BATCHES, LEAST_BATCH, MOST_BATCH = 32, 16, 1024  # batches of an epoch; rows of a batch
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 640, 5, 40  # steps of a training, where the epochs allow
L0_MIN, L0_MAX = 0.5, 1.25  # shares of k
BELOW_PCA = 0.9  # the error of an SAE may be at most this share of the error of PCA with as many components


MANY_TOKENS = Size("language", 2**40, 1)


def train(section: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Put values in place of `auto` in the section ``train``, as tune and by_layer have changed it.

    Values that are written as numbers bound the others: k is at most the number of latents, and a batch has at most as
    many rows as there are, in equal micro-batches.
    """
    written = {name: value for name in TOKENS if isinstance(value := section.get(name), int)}
    values = _of_documents(written, size) if size.documents else {**TOKENS, **written}

    values["k"] = max(min(values["k"], values["latents"]), 1)
    parts = section.get("micro_batches")
    parts = parts if isinstance(parts, int) and parts > 0 else 1
    values["batch_size"] = max(min(values["batch_size"], size.rows) // parts, 1) * parts

    return {**section, **{name: values[name] for name in TOKENS if section.get(name) == AUTO}}


def _of_documents(written: Mapping[str, int], size: Size) -> dict[str, Any]:
    """Choose the knobs of train where a row is a document. Knobs that are ``written`` keep their values."""
    # Every latent needs rows from which it is learned. And k must be a small part of the latents: else it says little
    # about a row which latents are active.
    latents = _power_of_two(min(size.rows / ROWS_A_LATENT, LATENTS_A_NUMBER * size.width), LEAST_LATENTS, MOST_LATENTS)
    latents = written.get("latents") or max(latents, LATENTS_A_K * written.get("k", 1))
    k = written.get("k") or min(_power_of_two(size.width / NUMBERS_A_K, LEAST_K, MOST_K), latents // LATENTS_A_K)

    # Few rows are read many times, in small batches, so that there are enough steps.
    batch = written.get("batch_size") or _power_of_two(size.rows / BATCHES, LEAST_BATCH, MOST_BATCH)
    epochs = math.ceil(STEPS * batch / max(size.rows, 1))
    epochs = written.get("epochs") or min(max(epochs, LEAST_EPOCHS), MOST_EPOCHS)
    return {"latents": latents, "k": k, "batch_size": batch, "epochs": epochs, "init": "data"}


def _power_of_two(value: float, least: int, most: int) -> int:
    """Return the power of two that is nearest to ``value`` by ratio, within ``least`` and ``most``: 500 -> 512."""
    return min(max(2 ** round(math.log2(max(value, 1))), least), most)


def targets(
    section: Mapping[str, Any], kind: str, k: int, pca: Mapping[str, float | None] | None = None
) -> dict[str, Any]:
    """Put bounds in place of `auto` in the section ``targets``.

    ``k``: of the SAE that is judged. ``pca``: metric -> its value for PCA with k components. Before that is known, 1
    takes its place, which is the value for predicting the mean. Raises BadInput for a bound that may not be auto.
    """
    bounds: dict[str, Any] = {}
    for metric, written in section.items():
        if isinstance(written, Mapping):
            bounds[metric] = {
                end: _bound(metric, end, kind, k, pca or {}) if value == AUTO else value
                for end, value in written.items()
            }
        else:
            bounds[metric] = written
    return bounds


def _bound(metric: str, end: str, kind: str, k: int, pca: Mapping[str, float | None]) -> float:
    """Return the value of `auto` for one bound of a metric, its ``end`` min or max."""
    if (name := f"{metric}.{end}") not in TOKEN_TARGETS:
        raise BadInput(f"params.yaml: targets.{name} is auto, but only {', '.join(TOKEN_TARGETS)} may be")
    if kind not in DOCUMENTS:
        return TOKEN_TARGETS[name]
    if metric == "l0":
        return (L0_MIN if end == "min" else L0_MAX) * k
    pca_error = pca.get(metric)
    return 1.0 if pca_error is None else BELOW_PCA * pca_error


def filters(section: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Put values in place of `auto` in ``min_chars`` and ``near_duplicates`` of the section fetch.corpus.

    A document that is a row is kept, even if it is short or nearly the same as another one.
    """
    values = {"min_chars": 0, "near_duplicates": None} if kind in DOCUMENTS else dict(TOKEN_FILTERS)
    if isinstance(longest := section.get("max_chars"), int):
        values["min_chars"] = min(values["min_chars"], longest)
    return {**section, **{name: values[name] for name in values if section.get(name) == AUTO}}


def tell(stage: str, written: Mapping[str, Any], values: Mapping[str, Any], size: Size) -> None:
    """Say on stderr what the values of auto are: ``train: latents 512, k 32, from 4,000 rows of 384``."""
    if resolved := [f"{name} {values[name]}" for name in TOKENS if written.get(name) == AUTO]:
        sys.stderr.write(f"{stage}: {', '.join(resolved)}, from {size.rows:,} rows of {size.width:,}\n")
