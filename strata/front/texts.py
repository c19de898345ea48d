"""Texts of any source, and their splits."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pandas as pd
from torch import Tensor

from strata.corpus import corpus, sources
from strata.corpus.document import Document
from strata.corpus.knobs import Source
from strata.corpus.read import SPLITS
from strata.run import door, params
from strata.run.door import BadInput

SOURCE = "it must be a file, a folder, package:NAME, hub:NAME, kaggle:OWNER/NAME, a database's URL, or a dict of keys"


class Split(NamedTuple):
    """The three parts of some items, each of the kind that the items were."""

    train: Any
    validation: Any
    test: Any


@overload
def texts(*source: Any, batch: None = None, most: int | None = None, **keys: Any) -> Iterator[str]: ...
@overload
def texts(*source: Any, batch: int, most: int | None = None, **keys: Any) -> Iterator[list[str]]: ...
def texts(*source: Any, batch: int | None = None, most: int | None = None, **keys: Any) -> Iterator[Any]:
    """Read the texts of a source one by one; with ``batch``, in lists of so many, the last of which may be shorter.

    ``source``, ``most`` and ``keys``: as :func:`strata.documents` takes them.

    >>> for batch in strata.texts("package:gensim-wikipedia", batch=32, most=3200):       # doctest: +SKIP
    ...     print(len(batch))
    """
    if batch is not None:
        door.whole("batch", batch, 1)
    found = (document.text for document in documents(*source, most=most, **keys))
    return found if batch is None else iter(lambda: list(islice(found, batch)), [])


def documents(*source: str | Path | Mapping[str, Any], most: int | None = None, **keys: Any) -> Iterator[Document]:
    """Read the documents of a source as they come: title, label, text and id of each, None where there is none.

    ``source``: a .txt, .csv, .tsv, .jsonl or .parquet file, a MediaWiki dump, ``package:NAME``, ``hub:NAME``,
    ``kaggle:OWNER/NAME``, a folder in the hub's layout or a database's URL; or a dict, as params.yaml has it under
    fetch.corpus.sources. Several sources take turns. ``keys``: those of such a dict, for all sources: ``text``,
    ``label``, ``title`` and ``id`` name columns, ``unit`` says what a document of a text file is, ``revision`` pins a
    dataset. ``most``: documents in all. A document without a text is left out; nothing else is filtered.

    Raises BadInput at once for a source that is not known, and while reading for a damaged one.

    >>> pd.DataFrame(strata.documents("news.csv", text="title", label="topic"))           # doctest: +SKIP
    """
    if most is not None:
        door.whole("most", most, 1)
    if not source:
        raise BadInput(f"there is no source; {SOURCE}")
    return islice(_documents([_resolved(each, keys) for each in source]), most)


def _resolved(source: Any, keys: dict[str, Any]) -> Source:
    """The source that a call names, with its kind."""
    door.of_kind("source", source, str | Path | Mapping, SOURCE)
    named = dict(source) if isinstance(source, Mapping) else {"source": str(source)}
    return sources.resolved(params.check({**named, **keys}, Source, "source"))


def _documents(resolved: list[Source]) -> Iterator[Document]:
    """The documents of all sources, in turns, that hold a text. Files are closed where the reading stops early."""
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(sources.documents(source))) for source in resolved]
        for document in corpus.turns(streams):
            if text := corpus.cleaned(document.text or ""):
                yield document._replace(text=text)


def split(items: Any, labels: Any = None, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Split:
    """Split items at random into train, validation and test, as the pipeline splits documents.

    ``items``: a table, an array, a tensor or a list; each part is of the same kind, in shuffled order. ``labels``: one
    an item, or the name of a table's column; then every label has the same shares, to within one item. ``validation``
    and ``test``: shares of all items; a share of 0 gives an empty part. The same ``seed`` gives the same parts.

    Raises BadInput for shares that leave nothing to train on, and for too few items.

    >>> train, _, test = strata.split(table, labels="topic", validation=0, test=0.2, seed=42)  # doctest: +SKIP
    """
    for name, share in (("validation", validation), ("test", test)):
        door.finite(name, share)
        if not 0 <= share < 1:
            raise BadInput(f"{name} is {share!r}; it must be a share, of at least 0 and below 1")
    if validation + test >= 1:
        raise BadInput(f"validation {validation} and test {test} leave nothing to train on")
    door.whole("seed", seed, 0)
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise BadInput(f"items is {door.a_thing(items)}; it must be a table, an array or a list")
    if isinstance(labels, str):
        if not isinstance(items, pd.DataFrame) or labels not in items:
            raise BadInput(f"labels is {labels!r}, which is no column of the items; name one, or give a label each")
        labels = items[labels]

    rows = items if isinstance(items, pd.DataFrame | pd.Series | np.ndarray | Tensor) else list(items)
    order = np.random.default_rng(seed).permutation(len(rows))
    numbers = np.zeros(len(rows), np.int64)
    if labels is not None:
        known: dict[str, int] = {}
        names = door.one_a_row("labels", labels, len(rows))
        numbers = np.array([known.setdefault(name, len(known)) if name else -1 for name in names], np.int64)

    place = corpus.split(numbers[order], validation, test)
    return Split(*(_taken(rows, order[place == number]) for number in range(len(SPLITS))))


def _taken(rows: Any, places: Any) -> Any:
    """The rows at ``places``, in their own kind."""
    if isinstance(rows, pd.DataFrame | pd.Series):
        return rows.iloc[places]
    return [rows[place] for place in places] if isinstance(rows, list) else rows[places]
