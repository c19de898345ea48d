"""Documents of all sources -> one corpus: filtered, without near-duplicates, balanced, shuffled and split.

Each document that is kept is written to an Arrow file on disk (the spool) as soon as it is read, and is read from there
in shuffled order. So a corpus may be larger than memory, which holds only a few bytes a document, plus what the removal
of near-duplicates needs (see duplicates.py).
"""

import os
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from strata import auto
from strata.corpus import sources, values
from strata.corpus.document import Document
from strata.corpus.duplicates import NearDuplicates
from strata.corpus.knobs import Corpus
from strata.corpus.read import LANGUAGE, OWN_VECTORS, SPLITS, VECTORS
from strata.corpus.vectors import VectorCheck
from strata.run.door import BadInput
from strata.run.files import sha256, write_json
from strata.run.progress import each

SPOOL = pa.schema([("title", pa.string()), ("label", pa.string()), ("text", pa.string()), ("id", pa.string())])
SCHEMA = pa.schema(
    [
        ("document", pa.int64()),
        ("title", pa.string()),
        ("label", pa.string()),
        ("text", pa.string()),
        ("id", pa.string()),
        ("split", pa.string()),
    ]
)
BATCH = 1024  # documents held at once, unless they are long
BATCH_CHARS = 2**24  # characters of the documents of a batch, from which on it is written although it is not full
REASONS = {
    "empty": "held no text",
    "short": "were shorter than min_chars",
    "near_duplicate": "were near-duplicates",
    "balance": "were too many, or their label too rare, for balance",
}


def build(params: Corpus, seed: int, folder: Path, kind: str = LANGUAGE) -> dict[str, Any]:
    """Write corpus.parquet and meta.json (see read.py) into the existing ``folder``; return the content of meta.json.

    ``kind`` is the kind of fetch.lm, on which the meaning of `auto` depends.

    Raises BadInput when a source cannot be read, or when no document is left; then the message says how many documents
    were dropped and why.
    """
    resolved_sources = [sources.resolved(source) for source in params.sources]
    counts: Counter[str] = Counter()
    vectors = VectorCheck(params.max_bad_rows)
    spool = folder / "spool.arrow"

    # One pass over the sources, which take turns. The documents that are kept wait in the spool, because the order
    # can be shuffled only when their number is known.
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(sources.documents(source))) for source in resolved_sources]
        documents = each(turns(streams), "read", "documents")
        labels, label_names = _spool(_filtered(documents, params, kind, counts, vectors), spool)

    # (documents,) rows of the spool in the order of the corpus
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    if params.balance is not None:
        balanced = _balanced(labels[order], params, label_names)
        counts["balance"] = len(order) - len(balanced)
        order = order[balanced]

    if not len(order):
        reasons = "; ".join(f"{counts[reason]} {why}" for reason, why in REASONS.items() if counts[reason])
        bad = f"; bad vectors: {'; '.join(vectors.bad_rows[:3])}" if vectors.bad_rows else ""
        raise BadInput(
            f"the corpus is empty: {counts['read']} documents were read{'; ' if reasons else ''}{reasons}{bad}"
        )

    # Without stratify, all documents count as having the same label.
    even_in = labels[order] if params.stratify else np.zeros(len(order), np.int64)
    splits = split(even_in, params.validation, params.test)
    chars = _write(spool, order, splits, folder, vectors.width)
    spool.unlink()
    _vector_file(spool).unlink()

    meta = {
        "documents": len(order),
        "splits": {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)},
        "labels": len(set(labels[order].tolist()) - {-1}),
        "chars": chars,
        "read": counts["read"],
        "dropped": {reason: counts[reason] for reason in REASONS},
        **vectors.facts(),
        "sources": [sources.facts(source) for source in resolved_sources],
        "sha256": sha256(folder / "corpus.parquet"),
    }
    if vectors.width:
        meta["vectors_sha256"] = sha256(folder / VECTORS)
        if vectors.bad_rows:
            sys.stderr.write(f"fetch: {vectors.bad.total()} rows are left out: {'; '.join(vectors.bad_rows[:10])}\n")
    if near_duplicates := counts["near_duplicate"]:
        sys.stderr.write(
            f"fetch: {near_duplicates} of {counts['read']} documents are left out, each nearly the same as an earlier "
            "one; fetch.corpus.near_duplicates: null keeps them\n"
        )

    write_json(folder / "meta.json", meta)
    return meta


def turns(streams: Sequence[Iterator[Document]]) -> Iterator[Document]:
    """Yield one document of each source in turn, so that a limit takes the same number from each source.

    A source that has ended is skipped.
    """
    unfinished = list(streams)
    while unfinished:
        for stream in list(unfinished):
            if (document := next(stream, None)) is None:
                unfinished.remove(stream)
            else:
                yield document


def _filtered(
    documents: Iterable[Document], params: Corpus, kind: str, counts: Counter[str], vectors: VectorCheck
) -> Iterator[Document]:
    """Yield the documents that are long enough and new, cut to ``max_chars``.

    ``counts`` receives the number of documents that were read, and of those that were dropped, by reason. Reading stops
    after ``params.documents`` documents, unless balance has to see all documents first.
    """
    # `auto` filters differ between documents of text and documents that carry a vector.
    section = params.model_dump(include={"min_chars", "max_chars", "near_duplicates"})
    text_filters, vector_filters = auto.filters(section, kind), auto.filters(section, OWN_VECTORS)
    overlaps = {filters["near_duplicates"] for filters in (text_filters, vector_filters)} - {None}
    detectors = {overlap: NearDuplicates(overlap) for overlap in overlaps}

    limit = None if params.balance is not None else params.documents
    kept = 0
    for document in documents:
        counts["read"] += 1
        if not vectors.accepts(document):
            continue

        filters = vector_filters if document.vector else text_filters
        text = document.text or (document.title if document.vector else "")  # a vector need not have a text
        text = _cut(cleaned(text), params.max_chars)

        if not text:
            counts["empty"] += 1
        elif len(text) < filters["min_chars"]:
            counts["short"] += 1
        elif (detector := detectors.get(filters["near_duplicates"])) and detector.seen(text):
            counts["near_duplicate"] += 1
        else:
            # The title may be the name of a file, which need not be valid Unicode.
            yield document._replace(text=text, title=values.text(document.title))
            kept += 1
            if kept == limit:
                return


def cleaned(text: str) -> str:
    """Return ``text`` as valid Unicode, with one kind of line ends, and no space around it."""
    return values.text(text).replace("\r\n", "\n").strip()


def _cut(text: str, limit: int | None) -> str:
    """Cut ``text`` to at most ``limit`` characters, after a whole word if it has spaces."""
    if limit is None or len(text) <= limit:
        return text
    head = text[: limit + 1].rsplit(maxsplit=1)
    return head[0] if len(head) > 1 else text[:limit]


def _spool(documents: Iterable[Document], path: Path) -> tuple[NDArray[np.int64], list[str]]:
    """Write documents to the Arrow file ``path`` as they come; return their labels (documents,) and the labels' names.

    A label is the number of its name, or -1 for a document without a label. The vectors of documents, which all have
    the same width, go to a file of numbers beside ``path``.
    """
    label_numbers: dict[str, int] = {}
    labels = array("q")  # 8 bytes a document
    batch: list[dict[str, Any]] = []
    batch_chars = 0
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, SPOOL) as writer,
        _vector_file(path).open("wb") as vectors,
    ):
        for document in documents:
            if isinstance(document.vector, bytes):
                vectors.write(document.vector)

            label = document.label
            labels.append(-1 if label is None else label_numbers.setdefault(label, len(label_numbers)))

            batch.append(document._asdict())
            batch_chars += len(document.text)
            if len(batch) == BATCH or batch_chars > BATCH_CHARS:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, SPOOL))
                batch, batch_chars = [], 0

        if batch:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, SPOOL))
    return np.array(labels, np.int64), list(label_numbers)


def _vector_file(spool: Path) -> Path:
    """Name the file of vectors beside a spool. It is read row by row: mapped, all of it would count as memory."""
    return spool.with_suffix(".vectors")


def _balanced(labels: NDArray[np.int64], params: Corpus, names: list[str]) -> NDArray[np.int64]:
    """Choose the same number of documents of each label, the first ones; return their places in ``labels``, ascending.

    ``labels`` (documents,) are numbers, called ``names``. Labels with fewer documents than that lose all of them.
    ``params.documents`` bounds the total: with 3 labels and 10 documents, 3 documents of each label are kept.
    """
    if (labels < 0).any():
        raise BadInput(f"balance needs a label on every document; {(labels < 0).sum()} of {len(labels)} have none")
    if not len(labels):
        return labels

    sizes = np.bincount(labels)  # (labels,) documents of each label
    per_label = int(sizes.min()) if params.balance == "smallest" else int(params.balance or 0)
    large_enough = np.flatnonzero(sizes >= per_label)
    if not len(large_enough):
        raise BadInput(
            f"balance asks for {per_label} documents a label; the largest, {names[sizes.argmax()]}, has {sizes.max()}"
        )

    if params.documents is not None:
        if params.documents < len(large_enough):
            raise BadInput(
                f"documents is {params.documents}, but balance has to keep some of each of {len(large_enough)} labels"
            )
        per_label = min(per_label, params.documents // len(large_enough))
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_label] for label in large_enough]))


def split(labels: NDArray[np.int64], validation: float, test: float) -> NDArray[np.int64]:
    """Assign each shuffled document to a split; return the splits (documents,) as places in SPLITS.

    ``labels`` (documents,): the number of each document's label. ``validation`` and ``test``: shares of the documents.
    Every label gets the same shares, to within one document: the documents are sorted by label, and one is held out at
    even distances. With a share of 0.1, it is one in ten.
    """
    held_out_share = validation + test
    least = sum(share > 0 for share in (validation, test))  # a document for each split that is wanted
    by_label = np.argsort(labels, kind="stable")
    held_out = by_label[_spread(len(by_label), held_out_share, least)]

    # Test documents are spread among the held-out ones in the same way.
    tested = held_out
    if held_out_share:
        tested = held_out[_spread(len(held_out), test / held_out_share, int(test > 0))]

    splits = np.zeros(len(labels), np.int64)
    splits[held_out] = SPLITS.index("validation")
    splits[tested] = SPLITS.index("test")
    if len(held_out) >= len(labels):
        raise BadInput(f"{len(labels)} documents are too few for a train, validation and test split")
    return splits


def _spread(total: int, share: float, least: int) -> NDArray[np.int64]:
    """Space ``share`` of ``total`` places evenly, and at least ``least`` of them. Example: 10, 0.2 -> [2, 7]."""
    count = max(round(total * share), least)
    return (2 * np.arange(count) + 1) * total // (2 * max(count, 1))


def _write(spool: Path, order: NDArray[np.int64], splits: NDArray[np.int64], folder: Path, width: int) -> int:
    """Write the spooled documents in ``order`` to corpus.parquet; return how many characters they hold.

    ``order`` (documents,): rows of the spool. ``splits`` (documents,): the split of each, as its place in SPLITS.
    ``width``: of the documents' vectors, which are written in the same order; 0 where they have none.
    """
    chars = 0
    with (
        pa.memory_map(str(spool)) as source,
        pa.ipc.open_file(source) as reader,
        pq.ParquetWriter(folder / "corpus.parquet", SCHEMA, compression="zstd") as writer,
        (folder / VECTORS).open("wb") if width else nullcontext() as ordered_vectors,
        _vector_file(spool).open("rb") as spooled_vectors,
    ):
        if ordered_vectors:
            np.lib.format.write_array_header_1_0(
                ordered_vectors, {"descr": "<f4", "fortran_order": False, "shape": (len(order), width)}
            )

        # Batch b of the spool holds its rows starts[b] to ends[b].
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        ends = list(accumulate(batch.num_rows for batch in batches))
        starts = [end - batch.num_rows for end, batch in zip(ends, batches, strict=True)]

        for start in each(range(0, len(order), BATCH), "shuffle", "batches"):
            rows: list[dict[str, Any]] = []
            for place, row in enumerate(order[start : start + BATCH].tolist(), start=start):
                number = bisect_right(ends, row)
                document = batches[number].slice(row - starts[number], 1).to_pylist()[0]
                if ordered_vectors:
                    vector_bytes = 4 * width  # float32
                    ordered_vectors.write(os.pread(spooled_vectors.fileno(), vector_bytes, vector_bytes * row))
                rows.append({**document, "document": place, "split": SPLITS[splits[place]]})
                chars += len(document["text"])
            writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
    return chars
