"""Read what the tabs look at from the project's folders: documents, and a seeded sample of stored activations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from strata.corpus import read
from strata.families.read import Clusters, clustered, open_clusters
from strata.interpretation.labels import FILE, open_named
from strata.interpretation.read import Latents, interpreted
from strata.lm.model import Hook, pieces
from strata.measure.quality import OUTLIER
from strata.pages.readable import inline, marked
from strata.rows.shards import Activations, Contexts, open_activations, open_contexts
from strata.run.door import BadInput
from strata.run.files import absolute
from strata.sae import disk
from strata.sae.sae import SAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN, DOCUMENT = "token", "document"
EXCERPT = 160  # characters of a document that a table shows
BLOCK = 4096  # rows read at a time
BEFORE, AFTER = 12, 6  # tokens shown before and after one
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Some stored vectors, drawn by a seed.

    ``x``: (n, width) float32. ``rows``: a line for each vector: row (-1 for a mean of several rows), document, title,
    label, text, norm. ``outliers``: how many drawn vectors were left out for their norm.
    """

    x: Floats
    rows: pd.DataFrame
    outliers: int


@dataclass(frozen=True)
class Project:
    """The folders `data/` and `reports/` of a checkout in which the pipeline has run."""

    data: Path
    reports: Path

    def layers(self) -> list[int]:
        """Return the layers with activations on disk, ascending. Raises BadInput when there is none."""
        metas = (self.data / "activations").glob("*/meta.json")
        layers = sorted(int(path.parent.name) for path in metas if path.parent.name.isdecimal())
        if not layers:
            raise BadInput(f"{self.data / 'activations'} holds no layer; run `make` (or `dvc repro extract`) first")
        return layers

    def stamp(self) -> int:
        """Return a number that changes when a stage writes its files, or DVC brings earlier ones back.

        With it, nothing that was computed from other files is shown.
        """
        metas = [*self.data.glob("*/meta.json"), *self.data.glob("*/*/meta.json"), *self.data.glob("*/*/cfg.json")]
        reports = [*self.reports.glob("train/*"), *self.reports.glob("scorecard.json")]
        return hash(tuple((str(path), path.stat().st_mtime_ns) for path in sorted([*metas, *reports])))

    def named(self) -> int:
        """Return a number that changes when a person names a latent. What was computed stays valid, but for names."""
        labels = absolute(self.data).parent / FILE
        return labels.stat().st_mtime_ns if labels.exists() else 0

    @property
    def pages(self) -> Path:
        """The folder of the latents' pages that the report wrote."""
        return self.reports / "latents"

    def units(self, layer: int) -> list[str]:
        """Return what one point may be: a token of a language model, or a document, the mean of its tokens."""
        of_tokens = self.activations(layer).meta["hook"] in get_args(Hook)
        return [TOKEN, DOCUMENT] if of_tokens else [DOCUMENT]

    def activations(self, layer: int) -> Activations:
        """Open what extract wrote of a layer."""
        return open_activations(self.data / "activations" / str(layer))

    def contexts(self) -> Contexts:
        """Open the tokens that the rows of all layers stand on."""
        return open_contexts(self.data / "activations" / "tokens")

    def latents(self, layer: int) -> Latents | None:
        """Open what interpret and explain wrote of a layer. Return None where interpret did not run."""
        folder = self.data / "latents" / str(layer)
        return open_named(folder) if (folder / "meta.json").exists() and interpreted(folder) else None

    def clusters(self, layer: int) -> Clusters | None:
        """Open what cluster wrote of a layer. Return None where it did not run."""
        folder = self.data / "clusters" / str(layer)
        return open_clusters(folder) if (folder / "meta.json").exists() and clustered(folder) else None

    def has_sae(self, layer: int) -> bool:
        """Tell whether train ran for a layer."""
        return (self.data / "sae" / str(layer) / "cfg.json").exists()

    def sae(self, layer: int) -> SAE:
        """Load the SAE that train wrote of a layer."""
        return disk.load(self.data / "sae" / str(layer))[0]

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the language model's tokenizer, without the model's weights."""
        from transformers import AutoTokenizer

        source, options = read.lm_path(self.data / "lm")
        return AutoTokenizer.from_pretrained(source, **options)


def codes(sae: SAE, x: Floats) -> Floats:
    """Compute the codes of a few vectors, (n, latents) with the zeros."""
    with torch.inference_mode():
        sparse = sae.encode(torch.from_numpy(x))
        return sparse.pattern.dense(sparse.values).numpy()


def one_code(sae: SAE, x: Floats, latent: int) -> Floats:
    """Compute the code of one latent on each of many vectors, (n,). Codes of 256 vectors are in memory at a time."""
    return np.concatenate([codes(sae, x[first : first + 256])[:, latent] for first in range(0, len(x), 256)])


def documents(project: Project, most: int, seed: int) -> pd.DataFrame:
    """Draw at most ``most`` documents by ``seed``, in the corpus' order: document, title, label, split, text."""
    folder = project.data / "corpus"
    picked = set(drawn(read.corpus_meta(folder)["documents"], most, seed).tolist())
    lines = [row for row in read.documents(folder) if row["document"] in picked]
    frame = pd.DataFrame(lines, columns=["document", "title", "label", "split", "text"])
    return frame.assign(title=words(frame["title"].tolist()), label=words(frame["label"].tolist()))


def words(values: Sequence[Any]) -> pd.Series:
    """Return a column of texts in which None stays None. In pandas' own columns of text it becomes NaN, a float."""
    return pd.Series([None if pd.isna(value) else value for value in values], dtype=object)


def drawn(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Draw at most ``most`` of the numbers 0 to count - 1, ascending, without repetition."""
    if most >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


class Places(NamedTuple):
    """Where some rows stand: the token and document of each, and the tokens of that document just before and after."""

    token: NDArray[np.int32]
    document: NDArray[np.int32]
    before: list[list[int]]
    after: list[list[int]]


def places(contexts: Contexts, rows: NDArray[np.int64]) -> Places:
    """Find where ``rows``, ascending, stand. One file of contexts is in memory at a time."""
    standing = Places(np.empty(len(rows), np.int32), np.empty(len(rows), np.int32), [], [])
    file_row = 0  # number of the file's first row
    for tokens, documents in _files(contexts):
        context, position = (documents >= 0).nonzero()  # (rows of the file,) each
        first, end = np.searchsorted(rows, [file_row, file_row + len(context)])
        inside = rows[first:end] - file_row

        for place, c, p in zip(range(first, end), context[inside], position[inside], strict=True):
            document = documents[c, p]
            standing.token[place], standing.document[place] = tokens[c, p], document
            before, after = slice(max(p - BEFORE, 0), p), slice(p + 1, p + 1 + AFTER)
            standing.before.append(tokens[c, before][documents[c, before] == document].tolist())
            standing.after.append(tokens[c, after][documents[c, after] == document].tolist())
        file_row += len(context)
    return standing


def _files(contexts: Contexts) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Yield the tokens and the documents of each file, (contexts, positions); a document of -1 is no row."""
    total, size = max(end for _, end in contexts.meta["contexts"].values()), contexts.meta["file_contexts"]
    for first in range(0, total, size):
        yield contexts.read(first, min(first + size, total))


def sample(project: Project, layer: int, unit: str, most: int, inliers: bool, seed: int) -> Sample:
    """Draw at most ``most`` stored vectors of a layer by ``seed``.

    ``unit``: a token's row, or the mean of a document's rows. ``inliers``: leave out vectors whose norm is over 3 × the
    training rows' median.
    """
    activations, contexts = project.activations(layer), project.contexts()
    folder = project.data / "corpus"
    if unit == TOKEN:
        rows = drawn(activations.rows, most, seed)
        x = taken(activations, rows)
        standing = places(contexts, rows)
        document, text = standing.document, shown(project.tokenizer(), standing)
    else:
        owner = owners(contexts)
        with_rows, first_row, count = np.unique(owner, return_index=True, return_counts=True)
        picked = drawn(len(with_rows), most, seed)
        document = with_rows[picked].astype(np.int64)
        x, rows = means(activations, owner, document), np.where(count[picked] == 1, first_row[picked], -1)
        text = [excerpt(text) for text in read.Texts(folder).of(document)]

    titles, labels = read.titles(folder)
    frame = pd.DataFrame(
        {
            "row": rows,
            "document": document,
            "title": words([titles[number] for number in document]),
            "label": words([labels[number] for number in document]),
            "text": text,
            "norm": np.linalg.norm(x, axis=1),
        }
    )
    kept = (frame["norm"] <= OUTLIER * activations.median_norm).to_numpy() | (not inliers)
    return Sample(x[kept], frame[kept].reset_index(drop=True), int((~kept).sum()))


def taken(activations: Activations, rows: NDArray[np.int64]) -> Floats:
    """Read ``rows``, ascending, as (n, width) float32."""
    x = np.empty((len(rows), activations.width), np.float32)
    size = activations.meta["shard_rows"]
    for number, shard in enumerate(activations.shards):
        first, end = np.searchsorted(rows, [number * size, (number + 1) * size])
        x[first:end] = shard[rows[first:end] - number * size].float().numpy()
    return x


def owners(contexts: Contexts) -> NDArray[np.int32]:
    """Return the document of each activation row, (rows,)."""
    return np.concatenate([documents[documents >= 0] for _, documents in _files(contexts)])


def means(activations: Activations, owner: NDArray[np.int32], documents: NDArray[np.int64]) -> Floats:
    """Return the mean of each document's rows, (documents, width) float32.

    ``owner``: (rows,) the document of each row. ``documents``: ascending, each with a row. Only blocks of rows that
    hold such a document are read.
    """
    sums, counts = np.zeros((len(documents), activations.width)), np.zeros(len(documents), np.int64)
    for first in range(0, len(owner), BLOCK):
        block = owner[first : first + BLOCK]
        place = np.searchsorted(documents, block)
        wanted = np.flatnonzero(documents[np.minimum(place, len(documents) - 1)] == block)
        if len(wanted):
            # A product with a matrix of ones, (documents in the block, rows of the block), sums the rows.
            in_block, rank = np.unique(place[wanted], return_inverse=True)
            ones = csr_array((np.ones(len(wanted)), (rank, wanted)), (len(in_block), len(block)))
            sums[in_block] += ones @ activations.read(first, first + len(block)).float().numpy()
            counts[in_block] += np.bincount(rank)
    return np.asarray(sums / counts[:, None], np.float32)


def norms(project: Project, layer: int, documents: Sequence[int]) -> dict[int, float]:
    """Return document -> the norm of its vector, for those of ``documents`` that have one."""
    owner = owners(project.contexts())
    with_rows = np.intersect1d(np.asarray(documents, np.int64), owner)
    if not len(with_rows):
        return {}
    vectors = means(project.activations(layer), owner, with_rows)
    return dict(zip(with_rows.tolist(), np.linalg.norm(vectors, axis=1).tolist(), strict=True))


def excerpt(text: str, most: int = EXCERPT) -> str:
    """Return the beginning of a text, on one line of at most ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most].rsplit(maxsplit=1)[0] + " …"


def shown(tokenizer: "PreTrainedTokenizerBase", places: Places) -> list[str]:
    """Write a line for each row, with its own token in brackets: ``the war was ⟦over⟧ in``."""
    numbers = sorted({int(t) for part in (*places.before, *places.after, places.token) for t in part})
    text = dict(zip(numbers, pieces(tokenizer, numbers), strict=True))

    lines = []
    for token, before, after in zip(places.token, places.before, places.after, strict=True):
        space, word = marked(text[int(token)])
        left, right = ("".join(inline(text[t]) for t in part) for part in (before, after))
        lines.append(f"{left}{space}⟦{word}⟧{right}".strip())
    return lines
