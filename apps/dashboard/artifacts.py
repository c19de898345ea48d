"""What the tabs look at, read from the project's folders: documents, and a seeded sample of stored activations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from apps.serve.explainer import explanations
from strata.corpus import read
from strata.families.read import Clusters, clustered, open_clusters
from strata.interpretation.read import Latents, interpreted, open_latents
from strata.lm.model import Hook, pieces
from strata.measure.metrics import OUTLIER
from strata.pages.readable import inline, marked
from strata.rows.shards import Activations, Contexts, open_activations, open_contexts
from strata.run.door import BadInput
from strata.sae import disk
from strata.sae.sae import SAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN, DOCUMENT = "token", "document"
EXCERPT = 160  # characters of a document that a table shows
BLOCK = 4096  # rows read at a time
BEFORE, AFTER = 12, 6  # tokens shown about one
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """``x``: (n, width) float32. ``rows``: a line a vector: row (-1 of a mean of several), document, title, label,
    text, norm. ``outliers``: how many drawn rows were left out for their norm."""

    x: Floats
    rows: pd.DataFrame
    outliers: int


@dataclass(frozen=True)
class Project:
    """The folders `data/` and `reports/` of a checkout in which the pipeline has run."""

    data: Path
    reports: Path

    def layers(self) -> list[int]:
        """Layers with activations on disk, ascending. Raises BadInput when there is none."""
        folders = (self.data / "activations").glob("*/meta.json")
        found = sorted(int(path.parent.name) for path in folders if path.parent.name.isdecimal())
        if not found:
            raise BadInput(f"{self.data / 'activations'} holds no layer; run `make` (or `dvc repro extract`) first")
        return found

    def stamp(self) -> int:
        """Another number when a stage wrote, or DVC brought back what was there before, so that nothing computed from
        other files is shown."""
        metas = [*self.data.glob("*/meta.json"), *self.data.glob("*/*/meta.json"), *self.data.glob("*/*/cfg.json")]
        reports = [*self.reports.glob("train/*"), *self.reports.glob("scorecard.json")]
        return hash(tuple((str(path), path.stat().st_mtime_ns) for path in sorted([*metas, *reports])))

    def units(self, layer: int) -> list[str]:
        """What one point may be: a token of a language model, or a document (the mean of its tokens)."""
        of_tokens = self.activations(layer).meta["hook"] in get_args(Hook)
        return [TOKEN, DOCUMENT] if of_tokens else [DOCUMENT]

    def activations(self, layer: int) -> Activations:
        return open_activations(self.data / "activations" / str(layer))

    def contexts(self) -> Contexts:
        return open_contexts(self.data / "activations" / "tokens")

    def latents(self, layer: int) -> Latents | None:
        """What interpret wrote; None where it did not run."""
        folder = self.data / "latents" / str(layer)
        return open_latents(folder) if (folder / "meta.json").exists() and interpreted(folder) else None

    def clusters(self, layer: int) -> Clusters | None:
        """What cluster wrote; None where it did not run."""
        folder = self.data / "clusters" / str(layer)
        return open_clusters(folder) if (folder / "meta.json").exists() and clustered(folder) else None

    def has_sae(self, layer: int) -> bool:
        return (self.data / "sae" / str(layer) / "cfg.json").exists()

    def sae(self, layer: int) -> SAE:
        """What train wrote."""
        return disk.load(self.data / "sae" / str(layer))[0]

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The language model's tokenizer, without its weights."""
        from transformers import AutoTokenizer

        source, options = read.lm_path(self.data / "lm")
        return AutoTokenizer.from_pretrained(source, **options)


def notes(latents: Latents) -> dict[int, str]:
    """Latent -> its best explanation in words, "" where there is none."""
    return {latent: rows[0]["text"] or "" for latent, rows in explanations(latents).items()}


def codes(sae: SAE, x: Floats) -> Floats:
    """(n, latents) the codes of a few vectors, zeros included."""
    with torch.inference_mode():
        found = sae.encode(torch.from_numpy(x))
        return found.pattern.dense(found.values).numpy()


def one_code(sae: SAE, x: Floats, latent: int) -> Floats:
    """(n,) the code of one latent on each of many vectors."""
    return np.concatenate([codes(sae, x[first : first + 256])[:, latent] for first in range(0, len(x), 256)])


def documents(project: Project, most: int, seed: int) -> pd.DataFrame:
    """At most ``most`` documents, drawn by ``seed``, in the corpus' order: document, title, label, split, text."""
    folder = project.data / "corpus"
    kept = set(drawn(read.corpus_meta(folder)["documents"], most, seed).tolist())
    lines = [row for row in read.documents(folder) if row["document"] in kept]
    frame = pd.DataFrame(lines, columns=["document", "title", "label", "split", "text"])
    return frame.assign(title=words(frame["title"].tolist()), label=words(frame["label"].tolist()))


def words(values: Sequence[Any]) -> pd.Series:
    """A column of texts in which None stays None: pandas' own columns of text turn it into NaN, which is a float."""
    return pd.Series([None if pd.isna(value) else value for value in values], dtype=object)


def drawn(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most ``most`` of 0 … count - 1, ascending, without repetition."""
    if most >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


class Places(NamedTuple):
    """Of some rows: token and document, and the tokens of the same document just before and after each."""

    token: NDArray[np.int32]
    document: NDArray[np.int32]
    before: list[list[int]]
    after: list[list[int]]


def places(contexts: Contexts, rows: NDArray[np.int64]) -> Places:
    """Where ``rows``, ascending, stand. One file of contexts is in memory at a time."""
    found = Places(np.empty(len(rows), np.int32), np.empty(len(rows), np.int32), [], [])
    at = 0
    for tokens, documents in _files(contexts):
        context, position = (documents >= 0).nonzero()
        first, end = np.searchsorted(rows, [at, at + len(context)])
        mine = rows[first:end] - at
        for place, c, p in zip(range(first, end), context[mine], position[mine], strict=True):
            found.token[place], found.document[place] = tokens[c, p], documents[c, p]
            for side, window in (
                (found.before, slice(max(p - BEFORE, 0), p)),
                (found.after, slice(p + 1, p + 1 + AFTER)),
            ):
                side.append(tokens[c, window][documents[c, window] == documents[c, p]].tolist())
        at += len(context)
    return found


def _files(contexts: Contexts) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    total, size = max(end for _, end in contexts.meta["contexts"].values()), contexts.meta["file_contexts"]
    for first in range(0, total, size):
        yield contexts.read(first, min(first + size, total))


def sample(project: Project, layer: int, unit: str, most: int, inliers: bool, seed: int) -> Sample:
    """At most ``most`` stored vectors of a layer, drawn by ``seed``. ``unit``: a token's row, or a document's mean row.
    ``inliers``: without those whose norm is over 3 × the training rows' median."""
    activations, contexts = project.activations(layer), project.contexts()
    folder = project.data / "corpus"
    if unit == TOKEN:
        rows = drawn(activations.rows, most, seed)
        x = taken(activations, rows)
        found = places(contexts, rows)
        document, text = found.document, shown(project.tokenizer(), found)
    else:
        owner = owners(contexts)
        there, first, counts = np.unique(owner, return_index=True, return_counts=True)
        picked = drawn(len(there), most, seed)
        document = there[picked].astype(np.int64)
        x, rows = means(activations, owner, document), np.where(counts[picked] == 1, first[picked], -1)
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
    """Some rows, ascending, as float32."""
    found = np.empty((len(rows), activations.width), np.float32)
    size = activations.meta["shard_rows"]
    for number, shard in enumerate(activations.shards):
        first, end = np.searchsorted(rows, [number * size, (number + 1) * size])
        found[first:end] = shard[rows[first:end] - number * size].float().numpy()
    return found


def owners(contexts: Contexts) -> NDArray[np.int32]:
    """(rows,) the document of each activation row."""
    return np.concatenate([documents[documents >= 0] for _, documents in _files(contexts)])


def means(activations: Activations, owner: NDArray[np.int32], documents: NDArray[np.int64]) -> Floats:
    """The mean of each one's rows, of ``documents`` (ascending) that have some; only blocks that hold such are read."""
    sums, counts = np.zeros((len(documents), activations.width)), np.zeros(len(documents), np.int64)
    for at in range(0, len(owner), BLOCK):
        part = owner[at : at + BLOCK]
        place = np.searchsorted(documents, part)
        use = np.flatnonzero(documents[np.minimum(place, len(documents) - 1)] == part)
        if len(use):
            here, rank = np.unique(place[use], return_inverse=True)
            ones = csr_array((np.ones(len(use)), (rank, use)), (len(here), len(part)))
            sums[here] += ones @ activations.read(at, at + len(part)).float().numpy()
            counts[here] += np.bincount(rank)
    return np.asarray(sums / counts[:, None], np.float32)


def norms(project: Project, layer: int, documents: Sequence[int]) -> dict[int, float]:
    """Document -> the norm of its vector, of those of ``documents`` that have one."""
    owner = owners(project.contexts())
    there = np.intersect1d(np.asarray(documents, np.int64), owner)
    if not len(there):
        return {}
    vectors = means(project.activations(layer), owner, there)
    return dict(zip(there.tolist(), np.linalg.norm(vectors, axis=1).tolist(), strict=True))


def excerpt(text: str, most: int = EXCERPT) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most].rsplit(maxsplit=1)[0] + " …"


def shown(tokenizer: "PreTrainedTokenizerBase", places: Places) -> list[str]:
    """A line a row, its own token in brackets: ``the war was ⟦over⟧ in``."""
    numbers = sorted({int(t) for part in (*places.before, *places.after, places.token) for t in part})
    text = dict(zip(numbers, pieces(tokenizer, numbers), strict=True))
    lines = []
    for token, before, after in zip(places.token, places.before, places.after, strict=True):
        space, word = marked(text[int(token)])
        left, right = ("".join(inline(text[t]) for t in part) for part in (before, after))
        lines.append(f"{left}{space}⟦{word}⟧{right}".strip())
    return lines
