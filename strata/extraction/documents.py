"""One row a document: embeddings of its text, or the vector that its source brought.

A context is then one position, and the token on it the number of the document: what a person reads there is the text.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata.corpus.read import GIVEN, SENTENCE, SPLITS, Texts
from strata.extraction.contexts import Layout, until, write
from strata.extraction.extract import Corpus, Extract, Reading, dtype_of, stored
from strata.lm.sentences import most_tokens, told, unread
from strata.rows.shards import Contexts
from strata.rows.spread import FAR, check_norms, far
from strata.run.door import BadInput
from strata.run.files import need_disk

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LAYER = 0  # the only one
PLAN = Layout(context=1, pack=False, bos=0, padding=0, special=frozenset())
BLOCK = 1024  # documents that are sorted by length and embedded in batches, or copied


def check(folder: Path, layers: list[int], kind: str, rows: int, width: int) -> None:
    """Refuse layers that such data do not have, and what the disk cannot hold."""
    if layers != [LAYER]:
        raise BadInput(f"params.yaml: layers is {layers}, but with fetch.lm.kind {kind} it must be [0]")
    need_disk(folder, rows * width * dtype_of({"hook": kind}).itemsize, "extract")


def write_rows(most: int, corpus: Corpus, counts: dict[str, int], folder: Path) -> dict[str, Any]:
    """Write which document each row is of, up to each split's share of ``most``; return what meta.json says."""
    total = sum(counts.values())
    splits = {
        split: until(
            (([one["document"]], [one["document"]]) for one in corpus[split]), round(most * counts[split] / total)
        )
        for split in SPLITS
    }
    return write(splits, PLAN, folder, min(most, total))


def write_read(
    model: "SentenceTransformer", texts: Texts, most: int, corpus: Corpus, counts: dict[str, int], folder: Path
) -> dict[str, Any]:
    """As :func:`write_rows`; meta.json says, and the screen where there are some, how many of the texts are longer than
    ``model`` reads, and by how many tokens."""
    meta = write_rows(most, corpus, counts, folder)
    contexts, limit = Contexts(folder, meta), most_tokens(model)
    if limit is None:
        return meta

    lost: list[int] = []
    for first in range(0, meta["rows"], BLOCK):
        numbers, _ = contexts.read(first, min(first + BLOCK, meta["rows"]))
        lost += [tokens for tokens in unread(model, texts.of(numbers[:, 0])) if tokens]
    found = {"texts": len(lost), "total": meta["rows"], "tokens": sum(lost), "most": limit}
    if lost:
        sys.stderr.write(f"extract: {told(found)}\n")
    return {**meta, "unread": found}


def sentences(model: "SentenceTransformer", texts: Texts, width: int, params: Extract) -> Reading:
    """Embeddings by ``model``, of length 1 with ``params.normalize``.

    A text is padded to the longest of its batch, which may move the last bits: batches therefore go by BLOCK and
    ``params.batch_size`` alone.
    """

    def forward(tokens: NDArray[Any], kept: Tensor, first: int) -> dict[int, Tensor]:
        found = model.encode(
            texts.of(tokens[:, 0]),
            batch_size=params.batch_size,
            normalize_embeddings=params.normalize,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return {LAYER: stored(found.cpu(), "vectors", first, params)}

    return Reading(
        {"hook": SENTENCE, "forward": params.dtype, "normalize": params.normalize},
        width,
        BLOCK,
        partial(write_read, model, texts, params.tokens),
        forward,
    )


def given(vectors: NDArray[np.float32], params: Extract, name: Callable[[int], str]) -> Reading:
    """The rows of ``vectors`` (document, width), as they are. Raises BadInput where these cannot be trained on, and
    says on stderr where one is far larger than the others; ``name``: what its document is called there."""
    norms = np.concatenate(
        [np.linalg.norm(vectors[at : at + BLOCK].astype(np.float64), axis=1) for at in range(0, len(vectors), BLOCK)]
    )
    largest, where = float(norms.max()), f"the vector of {name(int(norms.argmax()))}"
    median = check_norms(norms, largest, "vectors", lambda: where)
    if largest > FAR * median:
        sys.stderr.write(f"extract: {far(largest, median, 'vectors', where)}\n")

    def forward(tokens: NDArray[Any], kept: Tensor, first: int) -> dict[int, Tensor]:
        return {LAYER: torch.from_numpy(vectors[tokens[:, 0]])}

    return Reading(
        {"hook": GIVEN, "forward": "float32"}, vectors.shape[1], BLOCK, partial(write_rows, params.tokens), forward
    )
