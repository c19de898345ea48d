"""Rows of documents, one row each: the embedding of its text, or the vector that its source brought.

A context then has one position, and the token there is the number of the document.
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

from strata.corpus.read import OWN_VECTORS, SENTENCE, SPLITS, Texts
from strata.extraction.contexts import Layout, until, write
from strata.extraction.extract import Corpus, Extract, RowSource, dtype_of, stored
from strata.rows.shards import Contexts
from strata.rows.spread import FAR, check_norms, far
from strata.run.door import BadInput
from strata.run.files import need_disk
from strata.sentences import most_tokens, told, unread

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LAYER = 0  # the only layer of such rows
PLAN = Layout(context=1, pack=False, bos=0, padding=0, special=frozenset())
BLOCK = 1024  # documents that are sorted by length and embedded in batches, or copied


def check(folder: Path, layers: list[int], kind: str, rows: int, width: int) -> None:
    """Refuse layers other than [0], and more rows than the disk can hold. ``kind``: of fetch.lm."""
    if layers != [LAYER]:
        raise BadInput(f"params.yaml: layers is {layers}, but with fetch.lm.kind {kind} it must be [0]")
    need_disk(folder, rows * width * dtype_of({"hook": kind}).itemsize, "extract")


def write_rows(most: int, corpus: Corpus, counts: dict[str, int], folder: Path) -> dict[str, Any]:
    """Write the document of each row, for at most ``most`` rows; return what meta.json says.

    ``corpus``: split -> its documents. ``counts``: split -> their number. Each split gets its share of ``most``.
    """
    total = sum(counts.values())
    splits = {
        split: until(
            (([document["document"]], [document["document"]]) for document in corpus[split]),
            round(most * counts[split] / total),
        )
        for split in SPLITS
    }
    return write(splits, PLAN, folder, min(most, total))


def write_read(
    model: "SentenceTransformer", texts: Texts, most: int, corpus: Corpus, counts: dict[str, int], folder: Path
) -> dict[str, Any]:
    """Do the work of :func:`write_rows`, and count the texts that are longer than ``model`` reads.

    meta.json says how many they are and how many tokens are not read. If there are any, a line on stderr says so too.
    """
    meta = write_rows(most, corpus, counts, folder)
    contexts, limit = Contexts(folder, meta), most_tokens(model)
    if limit is None:
        return meta

    unread_tokens: list[int] = []  # of each text that is too long
    for start in range(0, meta["rows"], BLOCK):
        documents, _ = contexts.read(start, min(start + BLOCK, meta["rows"]))
        unread_tokens += [tokens for tokens in unread(model, texts.of(documents[:, 0])) if tokens]

    counted = {"texts": len(unread_tokens), "total": meta["rows"], "tokens": sum(unread_tokens), "most": limit}
    if unread_tokens:
        sys.stderr.write(f"extract: {told(counted)}\n")
    return {**meta, "unread": counted}


def sentences(model: "SentenceTransformer", texts: Texts, width: int, params: Extract) -> RowSource:
    """Take the embeddings of texts by ``model`` as rows; with ``params.normalize`` they have length 1.

    A text is padded to the longest one of its batch, which may change the last bits of its embedding. Therefore the
    batches depend on nothing but BLOCK and ``params.batch_size``.
    """

    def forward(tokens: NDArray[Any], kept: Tensor, first_context: int) -> dict[int, Tensor]:
        embeddings = model.encode(
            texts.of(tokens[:, 0]),
            batch_size=params.batch_size,
            normalize_embeddings=params.normalize,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return {LAYER: stored(embeddings.cpu(), "vectors", first_context, params)}

    return RowSource(
        facts={"hook": SENTENCE, "forward": params.dtype, "normalize": params.normalize},
        width=width,
        batch_size=BLOCK,
        write=partial(write_read, model, texts, params.tokens),
        forward=forward,
    )


def own_vectors(vectors: NDArray[np.float32], params: Extract, name: Callable[[int], str]) -> RowSource:
    """Take ``vectors`` (document, width), which the corpus brought, as rows, unchanged.

    Raises BadInput where they cannot be trained on. Says on stderr where a vector is far larger than the others;
    ``name`` gives the name of its document.
    """
    blocks = (vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK))
    norms = np.concatenate([np.linalg.norm(block.astype(np.float64), axis=1) for block in blocks])  # (document,)
    largest, where = float(norms.max()), f"the vector of {name(int(norms.argmax()))}"
    median = check_norms(norms, largest, "vectors", lambda: where)
    if largest > FAR * median:
        sys.stderr.write(f"extract: {far(largest, median, 'vectors', where)}\n")

    def forward(tokens: NDArray[Any], kept: Tensor, first_context: int) -> dict[int, Tensor]:
        return {LAYER: torch.from_numpy(vectors[tokens[:, 0]])}

    return RowSource(
        facts={"hook": OWN_VECTORS, "forward": "float32"},
        width=vectors.shape[1],
        batch_size=BLOCK,
        write=partial(write_rows, params.tokens),
        forward=forward,
    )
