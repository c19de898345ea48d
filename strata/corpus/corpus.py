"""Documents of all sources -> one corpus: filtered, without near-duplicates, balanced, shuffled and split.

What is kept goes to an Arrow file on disk as it is read, and is taken from there in shuffled order, so a corpus may be
larger than memory: a few bytes a document stay in it, plus what near-duplicate removal holds (see duplicates.py).
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
from tqdm import tqdm

from strata import auto
from strata.corpus import sources, values
from strata.corpus.document import Document
from strata.corpus.duplicates import NearDuplicates
from strata.corpus.knobs import Corpus
from strata.corpus.read import GIVEN, LANGUAGE, SPLITS, VECTORS
from strata.corpus.vectors import Vectors
from strata.run.door import BadInput
from strata.run.files import sha256, write_json

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
BATCH_CHARS = 2**24
REASONS = {
    "empty": "held no text",
    "short": "were shorter than min_chars",
    "near_duplicate": "were near-duplicates",
    "balance": "were too many, or their label too rare, for balance",
}


def build(params: Corpus, seed: int, folder: Path, kind: str = LANGUAGE) -> dict[str, Any]:
    """Write corpus.parquet and meta.json (see read.py) into ``folder``, which is there; return what meta.json says.
    ``kind``: of fetch.lm, which says what `auto` is.

    BadInput when a source cannot be read, or when nothing is left: then it says what was dropped and why.
    """
    chosen = [sources.resolved(source) for source in params.sources]
    counts: Counter[str] = Counter()
    vectors = Vectors(params.max_bad_rows)
    spool = folder / "spool.arrow"

    # One pass over the sources, in turns. What is kept waits in a file until its number is known.
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(sources.documents(source))) for source in chosen]
        documents = tqdm(_turns(streams), desc="documents", unit=" documents", disable=None)
        labels, names = _spool(_filtered(documents, params, kind, counts, vectors), spool)

    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    if params.balance is not None:
        balanced = _balanced(labels[order], params, names)
        counts["balance"] = len(order) - len(balanced)
        order = order[balanced]
    if not len(order):
        reasons = "; ".join(f"{counts[reason]} {why}" for reason, why in REASONS.items() if counts[reason])
        bad = f"; bad vectors: {'; '.join(vectors.rows[:3])}" if vectors.rows else ""
        raise BadInput(
            f"the corpus is empty: {counts['read']} documents were read{'; ' if reasons else ''}{reasons}{bad}"
        )

    splits = _splits(labels[order] if params.stratify else np.zeros(len(order), np.int64), params)
    chars = _write(spool, order, splits, folder, vectors.width)
    spool.unlink()
    _vectors(spool).unlink()

    meta = {
        "documents": len(order),
        "splits": {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)},
        "labels": len(set(labels[order].tolist()) - {-1}),
        "chars": chars,
        "read": counts["read"],
        "dropped": {reason: counts[reason] for reason in REASONS},
        **vectors.facts(),
        "sources": [sources.facts(source) for source in chosen],
        "sha256": sha256(folder / "corpus.parquet"),
    }

    if vectors.width:
        meta["vectors_sha256"] = sha256(folder / VECTORS)
        if vectors.rows:
            sys.stderr.write(f"fetch: {vectors.bad.total()} rows are left out: {'; '.join(vectors.rows[:10])}\n")

    if near := counts["near_duplicate"]:
        sys.stderr.write(
            f"fetch: {near} of {counts['read']} documents are left out, each nearly the same as an earlier one; "
            "fetch.corpus.near_duplicates: null keeps them\n"
        )
    write_json(folder / "meta.json", meta)
    return meta


def _turns(streams: Sequence[Iterator[Document]]) -> Iterator[Document]:
    """Sources take turns, a document each, so that a limit takes equally of all; one that ends drops out."""
    left = list(streams)
    while left:
        for stream in list(left):
            if (document := next(stream, None)) is None:
                left.remove(stream)
            else:
                yield document


def _filtered(
    documents: Iterable[Document], params: Corpus, kind: str, counts: Counter[str], vectors: Vectors
) -> Iterator[Document]:
    """What is long enough and new, cut to ``max_chars``; ``counts`` learns what was read and why it was dropped.

    Stops reading at ``params.documents``, unless balance has to see everything first.
    """
    section = params.model_dump(include={"min_chars", "max_chars", "near_duplicates"})
    of_text, of_vector = auto.filters(section, kind), auto.filters(section, GIVEN)
    overlaps = {filters["near_duplicates"] for filters in (of_text, of_vector)} - {None}
    duplicates = {overlap: NearDuplicates(overlap) for overlap in overlaps}
    limit = None if params.balance is not None else params.documents
    kept = 0
    for document in documents:
        counts["read"] += 1
        if not vectors.takes(document):
            continue
        filters = of_vector if document.vector else of_text
        text = document.text or (document.title if document.vector else "")  # a vector need not have a text
        text = _cut(values.text(text).replace("\r\n", "\n").strip(), params.max_chars)
        if not text:
            counts["empty"] += 1
        elif len(text) < filters["min_chars"]:
            counts["short"] += 1
        elif (known := duplicates.get(filters["near_duplicates"])) and known.seen(text):
            counts["near_duplicate"] += 1
        else:
            yield document._replace(text=text, title=values.text(document.title))  # it may be the name of any file
            kept += 1
            if kept == limit:
                return


def _cut(text: str, limit: int | None) -> str:
    """At most ``limit`` characters, ending with a whole word if the text has spaces."""
    if limit is None or len(text) <= limit:
        return text
    head = text[: limit + 1].rsplit(maxsplit=1)
    return head[0] if len(head) > 1 else text[:limit]


def _spool(documents: Iterable[Document], path: Path) -> tuple[NDArray[np.int64], list[str]]:
    """Write documents to an Arrow file as they come, and the vectors of those that have one, all of one width, to a
    file of numbers beside it; return each one's label as a number (-1: none), and the names."""
    numbers: dict[str, int] = {}
    labels = array("q")
    held: list[dict[str, Any]] = []
    chars = 0
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, SPOOL) as writer,
        _vectors(path).open("wb") as vectors,
    ):
        for document in documents:
            if isinstance(document.vector, bytes):
                vectors.write(document.vector)
            labels.append(-1 if document.label is None else numbers.setdefault(document.label, len(numbers)))
            held.append(document._asdict())
            chars += len(document.text)
            if len(held) == BATCH or chars > BATCH_CHARS:
                writer.write_batch(pa.RecordBatch.from_pylist(held, SPOOL))
                held, chars = [], 0
        if held:
            writer.write_batch(pa.RecordBatch.from_pylist(held, SPOOL))
    return np.array(labels, np.int64), list(numbers)


def _vectors(spool: Path) -> Path:
    """The file of vectors beside a spool: read place by place, because a mapping of it would look like memory."""
    return spool.with_suffix(".vectors")


def _balanced(labels: NDArray[np.int64], params: Corpus, names: list[str]) -> NDArray[np.int64]:
    """Places (ascending) of the first documents of each label, the same number of each; rarer labels lose all.

    ``documents`` bounds the whole: with 3 labels and 10 documents, 3 of each are kept.
    """
    if (labels < 0).any():
        raise BadInput(f"balance needs a label on every document; {(labels < 0).sum()} of {len(labels)} have none")
    if not len(labels):
        return labels
    sizes = np.bincount(labels)
    each = int(sizes.min()) if params.balance == "smallest" else int(params.balance or 0)
    chosen = np.flatnonzero(sizes >= each)
    if not len(chosen):
        raise BadInput(
            f"balance asks for {each} documents a label; the largest, {names[sizes.argmax()]}, has {sizes.max()}"
        )
    if params.documents is not None and params.documents < len(chosen):
        raise BadInput(f"documents is {params.documents}, but balance has to keep some of each of {len(chosen)} labels")
    if params.documents is not None:
        each = min(each, params.documents // len(chosen))
    return np.sort(np.concatenate([np.flatnonzero(labels == number)[:each] for number in chosen]))


def _splits(labels: NDArray[np.int64], params: Corpus) -> NDArray[np.int64]:
    """Each shuffled document's split, as its place in SPLITS; every label gets the same shares, to within one document.

    Grouped by label, documents stand in a line, and every so-manieth is taken: with a share of 0.1, each tenth.
    """
    held_share = params.validation + params.test
    line = np.argsort(labels, kind="stable")
    held = line[_spread(len(line), held_share, sum(share > 0 for share in (params.validation, params.test)))]
    test = held[_spread(len(held), params.test / held_share, int(params.test > 0))] if held_share else held
    splits = np.zeros(len(labels), np.int64)
    splits[held] = SPLITS.index("validation")
    splits[test] = SPLITS.index("test")
    if len(held) >= len(labels):
        raise BadInput(f"{len(labels)} documents are too few for a train, validation and test split")
    return splits


def _spread(total: int, share: float, least: int) -> NDArray[np.int64]:
    """Evenly spaced places: ``share`` of ``total``, at least ``least``. Example: 10, 0.2 -> [2, 7]."""
    count = max(round(total * share), least)
    return (2 * np.arange(count) + 1) * total // (2 * max(count, 1))


def _write(spool: Path, order: NDArray[np.int64], splits: NDArray[np.int64], folder: Path, width: int) -> int:
    """Write the spooled documents in ``order``, and their vectors of ``width`` if there are any; return how many
    characters they hold."""
    chars = 0
    with (
        pa.memory_map(str(spool)) as source,
        pa.ipc.open_file(source) as reader,
        pq.ParquetWriter(folder / "corpus.parquet", SCHEMA, compression="zstd") as writer,
        (folder / VECTORS).open("wb") if width else nullcontext() as array,
        _vectors(spool).open("rb") as vectors,
    ):
        if array:
            np.lib.format.write_array_header_1_0(
                array, {"descr": "<f4", "fortran_order": False, "shape": (len(order), width)}
            )
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        ends = list(accumulate(batch.num_rows for batch in batches))
        starts = [end - batch.num_rows for end, batch in zip(ends, batches, strict=True)]
        for first in tqdm(range(0, len(order), BATCH), desc="shuffled", unit=" batches", disable=None):
            rows: list[dict[str, Any]] = []
            for place, row in enumerate(order[first : first + BATCH].tolist(), start=first):
                number = bisect_right(ends, row)
                document = batches[number].slice(row - starts[number], 1).to_pylist()[0]
                if array:
                    array.write(os.pread(vectors.fileno(), 4 * width, 4 * width * row))
                rows.append({**document, "document": place, "split": SPLITS[splits[place]]})
                chars += len(document["text"])
            writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
    return chars
