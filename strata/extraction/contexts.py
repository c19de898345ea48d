"""Documents -> contexts: rows of a fixed number of tokens that the model reads, BOS first, padding last."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from strata.corpus.read import SPLITS
from strata.run import resume

FILE_CONTEXTS = 8192  # contexts in a file: 8 MB at 128 tokens


@dataclass(frozen=True)
class Layout:
    """How tokens fill a context. ``padding`` is any token: what stands there is never looked at."""

    context: int
    pack: bool
    bos: int
    padding: int
    special: frozenset[int]


Row = tuple[list[int], list[int]]  # tokens and documents of one context, equally long; document -1: not a row


def fill(documents: Iterable[tuple[int, list[int]]], layout: Layout) -> Iterator[Row]:
    """Cut tokenised documents into contexts.

    Each context opens with BOS. Without ``pack`` a document starts a context of its own and the last one stays short;
    with it, documents follow one another, a BOS before each. The model reads the special tokens of a document, too, but
    they are no rows.

    Example, context 4, documents 7: [a b c d], 8: [e]  ->  [BOS a b c], [BOS d], [BOS e];
    packed  ->  [BOS a b c], [BOS d BOS e].
    """
    tokens, owners = [layout.bos], [-1]
    for document, ids in documents:
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
    """Number and token ids of each document; ``read`` gives those of some texts, without BOS in front."""
    waiting: list[dict[str, Any]] = []

    def flush() -> Iterator[tuple[int, list[int]]]:
        ids = read([document["text"] for document in waiting])
        yield from zip([document["document"] for document in waiting], ids, strict=True)

    for document in documents:
        waiting.append(document)
        if len(waiting) == batch:
            yield from flush()
            waiting.clear()
    yield from flush()


def until(contexts: Iterable[Row], rows: int) -> Iterator[Row]:
    """Whole contexts until ``rows`` activation rows are reached."""
    for context in contexts:
        if rows <= 0:
            return
        rows -= sum(owner >= 0 for owner in context[1])
        yield context


def write(splits: Mapping[str, Iterable[Row]], layout: Layout, folder: Path, total: int) -> dict[str, Any]:
    """Write the contexts of all splits, sealed, one after the other; return what meta.json says of them."""
    files: list[dict[str, Any]] = []
    ranges: dict[str, dict[str, list[int]]] = {"contexts": {}, "splits": {}}
    contexts = rows = 0
    tokens = np.full((FILE_CONTEXTS, layout.context), layout.padding, np.int32)
    owners = np.full((FILE_CONTEXTS, layout.context), -1, np.int32)

    def flush(count: int) -> None:
        path = folder / f"contexts-{len(files):05d}.safetensors"
        content = {"token": torch.from_numpy(tokens[:count]), "document": torch.from_numpy(owners[:count])}
        resume.keep_tensors(path, content)
        files.append({"file": path.name, "contexts": count, "sha256": resume.sealed_hash(path)})
        tokens[:], owners[:] = layout.padding, -1

    with tqdm(total=total, desc="tokens", unit=" tokens", disable=None) as bar:
        for split in SPLITS:
            first = contexts, rows
            for ids, documents in splits[split]:
                at = contexts % FILE_CONTEXTS
                tokens[at, : len(ids)], owners[at, : len(ids)] = ids, documents
                kept = sum(document >= 0 for document in documents)
                contexts, rows = contexts + 1, rows + kept
                bar.update(kept)
                if at == FILE_CONTEXTS - 1:
                    flush(FILE_CONTEXTS)
            ranges["contexts"][split], ranges["splits"][split] = [first[0], contexts], [first[1], rows]
    if contexts % FILE_CONTEXTS:
        flush(contexts % FILE_CONTEXTS)
    return {"context": layout.context, "file_contexts": FILE_CONTEXTS, "rows": rows, **ranges, "files": files}
