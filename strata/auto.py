"""What `auto` in params.yaml becomes: pure functions of the kind of rows, their number, and their width.

Of a language model a row is a token, and auto has fixed values. With the kinds `sentence` and `vectors` a row is a
document: there are as many rows as somebody happens to have, and the values follow from them. What is written as a
number stays.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strata.run.door import BadInput

AUTO = "auto"
DOCUMENTS = ("sentence", "vectors")  # kinds of fetch.lm whose rows are documents; their hook has the same name

TOKENS: dict[str, Any] = {"latents": 4096, "k": 80, "batch_size": 1024, "epochs": 5, "init": "kaiming"}
TOKEN_TARGETS = {"mse.max": 0.01, "l0.min": 50, "l0.max": 100, "fvu_inlier.max": 0.12}
TOKEN_FILTERS = {"min_chars": 200, "near_duplicates": 0.8}  # a language model reads no captions, and nothing twice

# How the values of documents were chosen: docs/embeddings.md; reports/log.md has the measurements.
ROWS_A_LATENT, LATENTS_A_NUMBER, LEAST_LATENTS, MOST_LATENTS = 8, 16, 16, 4096
NUMBERS_A_K, LATENTS_A_K, LEAST_K, MOST_K = 12, 8, 4, 32  # of a row, and of a dictionary, for one active latent
BATCHES, LEAST_BATCH, MOST_BATCH = 32, 16, 1024  # of an epoch
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 640, 5, 40
L0_MIN, L0_MAX = 0.5, 1.25  # shares of k
BELOW_PCA = 0.9  # an SAE may miss at most this share of what PCA misses with as many components


@dataclass(frozen=True)
class Size:
    """What is trained on: ``rows`` training rows of ``width`` numbers.

    ``kind``: that of fetch.lm, or the hook of the rows.
    """

    kind: str
    rows: int
    width: int

    @property
    def documents(self) -> bool:
        """Whether a row is a document; else it is a token of a language model."""
        return self.kind in DOCUMENTS


MANY_TOKENS = Size("language", 2**40, 1)


def train(section: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Put values in place of `auto` in the section ``train``, as tune and by_layer have changed it.

    What is written as a number bounds what is not: k fits into the latents, and a batch into the rows, in equal parts.
    """
    written = {name: value for name in TOKENS if isinstance(value := section.get(name), int)}
    values = _of_documents(written, size) if size.documents else {**TOKENS, **written}

    values["k"] = max(min(values["k"], values["latents"]), 1)
    parts = section.get("micro_batches")
    parts = parts if isinstance(parts, int) and parts > 0 else 1
    values["batch_size"] = max(min(values["batch_size"], size.rows) // parts, 1) * parts

    return {**section, **{name: values[name] for name in TOKENS if section.get(name) == AUTO}}


def _of_documents(written: Mapping[str, int], size: Size) -> dict[str, Any]:
    """The knobs of train where a row is a document; those that are ``written`` are as they are."""
    # every latent needs rows that it can be learned from, and a row's choice among them must say something
    latents = _power_of_two(min(size.rows / ROWS_A_LATENT, LATENTS_A_NUMBER * size.width), LEAST_LATENTS, MOST_LATENTS)
    latents = written.get("latents") or max(latents, LATENTS_A_K * written.get("k", 1))
    k = written.get("k") or min(_power_of_two(size.width / NUMBERS_A_K, LEAST_K, MOST_K), latents // LATENTS_A_K)

    # few rows are seen often, in small batches, so that there are enough steps
    batch = written.get("batch_size") or _power_of_two(size.rows / BATCHES, LEAST_BATCH, MOST_BATCH)
    epochs = math.ceil(STEPS * batch / max(size.rows, 1))
    epochs = written.get("epochs") or min(max(epochs, LEAST_EPOCHS), MOST_EPOCHS)
    return {"latents": latents, "k": k, "batch_size": batch, "epochs": epochs, "init": "data"}


def _power_of_two(value: float, least: int, most: int) -> int:
    """The power of two nearest to ``value`` by ratio, within ``least`` and ``most``: 500 -> 512."""
    return min(max(2 ** round(math.log2(max(value, 1))), least), most)


def targets(
    section: Mapping[str, Any], kind: str, k: int, pca: Mapping[str, float | None] | None = None
) -> dict[str, Any]:
    """Put bounds in place of `auto` in the section ``targets``.

    ``k``: of the SAE that is judged. ``pca``: what PCA with as many components reaches; before that is known, what
    predicting the mean reaches stands in for it. Raises BadInput for an auto that has no meaning.
    """
    return {
        metric: {
            end: _bound(metric, end, kind, k, pca or {}) if value == AUTO else value for end, value in written.items()
        }
        if isinstance(written, Mapping)
        else written
        for metric, written in section.items()
    }


def _bound(metric: str, end: str, kind: str, k: int, pca: Mapping[str, float | None]) -> float:
    if (name := f"{metric}.{end}") not in TOKEN_TARGETS:
        raise BadInput(f"params.yaml: targets.{name} is auto, but only {', '.join(TOKEN_TARGETS)} may be")
    if kind not in DOCUMENTS:
        return TOKEN_TARGETS[name]
    if metric == "l0":
        return (L0_MIN if end == "min" else L0_MAX) * k
    missed = pca.get(metric)
    return 1.0 if missed is None else BELOW_PCA * missed


def filters(section: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Put values in place of `auto` in ``min_chars`` and ``near_duplicates`` of the section fetch.corpus.

    A document that is a row stays, however short it is, and however much it is like another one.
    """
    values = {"min_chars": 0, "near_duplicates": None} if kind in DOCUMENTS else dict(TOKEN_FILTERS)
    if isinstance(longest := section.get("max_chars"), int):
        values["min_chars"] = min(values["min_chars"], longest)
    return {**section, **{name: values[name] for name in values if section.get(name) == AUTO}}


def size_of(meta: Mapping[str, Any]) -> Size:
    """The size of stored activations, by what their `meta.json` says."""
    first, end = meta["splits"]["train"]
    return Size(meta["hook"], end - first, meta["width"])


def tell(stage: str, written: Mapping[str, Any], values: Mapping[str, Any], size: Size) -> None:
    """Say on the screen what auto became: ``train: latents 512, k 32, from 4,000 rows of 384``."""
    if became := [f"{name} {values[name]}" for name in TOKENS if written.get(name) == AUTO]:
        sys.stderr.write(f"{stage}: {', '.join(became)}, from {size.rows:,} rows of {size.width:,}\n")
