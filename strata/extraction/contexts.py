"""Documents -> contexts: sequences of a fixed number of tokens that the model reads, BOS first, padding last."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strata.corpus.read import SPLITS
from strata.run import resume
from strata.run.progress import Progress

FILE_CONTEXTS = 8192  # contexts in a file: 8 MB at 128 tokens


@dataclass(frozen=True)
class Layout:
    """How tokens fill a context of ``context`` tokens.

    ``pack``: a document may begin in the context of the one before. ``padding`` is any token, because no row depends on
    it. ``special``: tokens that the model reads, but that are no rows.
    """

    context: int
    pack: bool
    bos: int
    padding: int
    special: frozenset[int]


# Tokens of one context and the document of each, equally long. Document -1: the token is no activation row.
Row = tuple[list[int], list[int]]


def fill(documents: Iterable[tuple[int, list[int]]], layout: Layout) -> Iterator[Row]:
    """Cut tokenised ``documents``, pairs of number and tokens, into contexts.

    Each context opens with BOS. Without ``pack`` each document starts a new context, and its last context stays short.
    With ``pack`` documents follow one another, with a BOS before each. The model also reads the special tokens of a
    document, but they are no rows.

    Example, context 4, documents 7: [a b c d], 8: [e]  ->  [BOS a b c], [BOS d], [BOS e];
    packed  ->  [BOS a b c], [BOS d BOS e].
    """
    tokens, owners = [layout.bos], [-1]
    for document, ids in documents:
        # Begin the document: behind the one before it, or in a new context.
        if len(tokens) > 1:
            if layout.pack and len(tokens) < layout.context:
                tokens.append(layout.bos)
                owners.append(-1)
            else:
                yield tokens, owners
                tokens, owners = [layout.bos], [-1]

        for token in ids:
            if len(tokens) == layout.context:
                yield tokens, owners
                tokens, owners = [layout.bos], [-1]
            tokens.append(token)
            owners.append(-1 if token in layout.special else document)

    if len(tokens) > 1:
        yield tokens, owners


def tokenise(
    documents: Iterable[dict[str, Any]], read: Callable[[list[str]], list[list[int]]], batch: int = 64
) -> Iterator[tuple[int, list[int]]]:
    """Yield the number and the token ids of each document. ``read`` tokenises ``batch`` texts at once, without BOS."""
    unread: list[dict[str, Any]] = []

    def flush() -> Iterator[tuple[int, list[int]]]:
        ids = read([document["text"] for document in unread])
        yield from zip([document["document"] for document in unread], ids, strict=True)

    for document in documents:
        unread.append(document)
        if len(unread) == batch:
            yield from flush()
            unread.clear()
    yield from flush()


def until(contexts: Iterable[Row], rows: int) -> Iterator[Row]:
    """Yield whole contexts until they have ``rows`` activation rows or more."""
    for context in contexts:
        if rows <= 0:
            return
        rows -= sum(owner >= 0 for owner in context[1])
        yield context


def write(splits: Mapping[str, Iterable[Row]], layout: Layout, folder: Path, total: int) -> dict[str, Any]:
    """Write the contexts of all splits into sealed files, one split after the other; return what meta.json says.

    ``total``: rows to expect, to show how far it is.
    """
    files: list[dict[str, Any]] = []
    # Split -> first and end of its contexts, and of its rows.
    ranges: dict[str, dict[str, list[int]]] = {"contexts": {}, "splits": {}}
    contexts = rows = 0  # so far

    # (context, position), of one file
    tokens = np.full((FILE_CONTEXTS, layout.context), layout.padding, np.int32)
    owners = np.full((FILE_CONTEXTS, layout.context), -1, np.int32)

    def flush(count: int) -> None:
        path = folder / f"contexts-{len(files):05d}.safetensors"
        content = {"token": torch.from_numpy(tokens[:count]), "document": torch.from_numpy(owners[:count])}
        resume.keep_tensors(path, content)
        files.append({"file": path.name, "contexts": count, "sha256": resume.sealed_hash(path)})
        tokens[:], owners[:] = layout.padding, -1

    with Progress("write contexts", "tokens", total) as progress:
        for split in SPLITS:
            first_context, first_row = contexts, rows
            for ids, documents in splits[split]:
                place = contexts % FILE_CONTEXTS
                tokens[place, : len(ids)], owners[place, : len(ids)] = ids, documents
                new_rows = sum(document >= 0 for document in documents)
                contexts, rows = contexts + 1, rows + new_rows
                progress.update(new_rows)
                if place == FILE_CONTEXTS - 1:
                    flush(FILE_CONTEXTS)
            ranges["contexts"][split] = [first_context, contexts]
            ranges["splits"][split] = [first_row, rows]

    if contexts % FILE_CONTEXTS:
        flush(contexts % FILE_CONTEXTS)
    return {"context": layout.context, "file_contexts": FILE_CONTEXTS, "rows": rows, **ranges, "files": files}
