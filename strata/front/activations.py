"""Texts, or vectors, as rows that an SAE is trained and looked at on."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from strata import defaults
from strata.corpus import corpus, read
from strata.corpus.knobs import Corpus
from strata.extraction import documents as of_documents
from strata.extraction.extract import RowSource, keep_contexts, language, write_shards
from strata.extraction.knobs import Extract
from strata.front.lm import DEFAULT, identity, load_lm
from strata.layers import named
from strata.lm.model import DTYPES, LanguageModel, check_layers, wrapped
from strata.notebook import Vectors, save
from strata.rows.shards import Activations, Contexts, open_activations, open_contexts
from strata.run import door, resume
from strata.run.door import BadInput
from strata.run.files import need_disk


@dataclass(frozen=True)
class LayerActivations:
    """One layer's activations of some texts: shards on disk, memory-mapped, so that memory does not grow with them.

    ``activations`` are the rows, ``contexts`` the tokens and documents that they belong to, ``corpus`` the folder of
    the texts. ``np.asarray`` of it is all rows as one (row, width) float32 array. They lie in a temporary folder, which
    goes when nothing refers to it any longer, unless a ``folder`` was named.
    """

    activations: Activations
    contexts: Contexts
    corpus: Path
    lm: LanguageModel | None
    _home: Any = field(repr=False, default=None)

    @property
    def layer(self) -> int:
        return self.activations.layer

    @property
    def width(self) -> int:
        return self.activations.width

    @property
    def scale(self) -> float:
        return self.activations.scale

    @property
    def mean(self) -> Tensor:
        return self.activations.mean

    @property
    def median_norm(self) -> float:
        return self.activations.median_norm

    @property
    def hook(self) -> str:
        """Where in a block the rows are from: resid_post, resid_pre, mlp_out, attn_out; of vectors: vectors."""
        return self.activations.meta["hook"]

    def split(self, name: str) -> tuple[int, int]:
        """First row of train, validation or test, and the row after its last."""
        return self.activations.split(name)

    def read(self, first: int, end: int) -> Tensor:
        """Rows first … end-1, (row, width)."""
        return self.activations.read(first, end)

    def blocks(self, first: int, end: int, rows: int = 4096) -> Iterator[Tensor]:
        """The same in order, in blocks of ``rows``."""
        return self.activations.blocks(first, end, rows)

    def __len__(self) -> int:
        return self.activations.rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.read(0, len(self)).float().numpy(), dtype)

    def __repr__(self) -> str:
        return f"LayerActivations(layer {self.layer}, {self.hook}, {len(self):,} rows of {self.width})"


def activations(
    lm: Any = DEFAULT,
    texts: Iterable[str] = (),
    layers: int | Sequence[int] | str = "all",
    context: int = 128,
    hook: str = "resid_post",
    labels: Iterable[Any] | None = None,
    titles: Iterable[Any] | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    folder: str | Path | None = None,
    **knobs: Any,
) -> dict[int, LayerActivations]:
    """Run ``lm`` once over ``texts`` and keep the activations of all ``layers``, {layer: rows}.

    ``lm``: what :func:`strata.load_lm` gives, a model of transformers', or a name for load_lm. ``layers``: a number,
    numbers, ``"all"`` or ``"every 3"``. ``context``: tokens that the model reads at once, BOS included; a longer text
    goes on in the next context. ``labels`` and ``titles``: one a text, for :func:`strata.latents`. ``validation`` and
    ``test``: shares of the texts that no training sees. ``knobs``: others of the section extract of params.yaml.

    A bar shows how far it is. Raises BadInput for what is no text, a layer or hook that the model does not have, and
    where the disk is too small.

    >>> acts = strata.activations(lm, texts, layers=[6], context=128)                     # doctest: +SKIP
    >>> acts[6]                                                                           # doctest: +SKIP
    LayerActivations(layer 6, resid_post, 120,000 rows of 768)
    """
    if isinstance(lm, str | Path):
        lm = load_lm(lm)
    model = lm if isinstance(lm, LanguageModel) else wrapped(lm)
    chosen = which(layers, len(model.blocks))
    home, root = home_of(folder)

    dtype = {dtype: name for name, dtype in DTYPES.items()}.get(model.model.dtype, "float32")
    changes = {"tokens": 10**12, "context": context, "hook": hook, "dtype": dtype, **knobs}
    settings = defaults.knobs("extract", Extract, changes)
    row_source = language(model, chosen, settings)

    table = {"text": _texts(texts)}
    for name, values in (("label", labels), ("title", titles)):
        if values is not None:
            table[name] = door.one_a_row(f"{name}s", values, len(table["text"]))
    source = root / "texts.jsonl"
    lines = (json.dumps(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True))
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {name: name for name in table}
    text = _corpus(source, {"kind": "table", **columns}, root / "corpus", seed, "language", validation, test)
    source.unlink()

    facts = {"model": identity(model), "corpus": text["sha256"], **row_source.facts}
    need_disk(root, min(settings.tokens, text["chars"]) * model.width * 2 * len(chosen), "activations")
    return kept(row_source, chosen, settings.shard_rows, facts, text, root, model, home)


def stored(vectors: Vectors, seed: int = 0, folder: str | Path | None = None) -> LayerActivations:
    """``vectors`` on disk, as layer 0, for :func:`strata.latents`, cluster and merge; a vector is a row."""
    home, root = home_of(folder)
    source = root / "vectors.parquet"
    save(vectors, source)
    columns = {"kind": "table", "id": "id", "vector": "vector", "text": "text"}
    text = _corpus(source, columns, root / "corpus", seed, read.OWN_VECTORS, 0.1, 0.1)
    source.unlink()

    settings = defaults.knobs("extract", Extract, {"tokens": len(vectors)})
    row_source = of_documents.own_vectors(read.vectors(root / "corpus"), settings, partial(read.name, root / "corpus"))
    model = {"name": "vectors", "revision": None, "fingerprint": text["vectors_sha256"]}
    facts = {"model": model, "corpus": text["sha256"], **row_source.facts}
    return kept(row_source, [0], settings.shard_rows, facts, text, root, None, home)[0]


def which(layers: int | Sequence[int] | str, depth: int) -> list[int]:
    """The layers that a call names, of a model with ``depth`` blocks.

    >>> which("every 3", 12)
    [0, 3, 6, 9]
    """
    if isinstance(layers, str):
        return named(layers, depth)
    numbers = layers if isinstance(layers, Sequence) else [layers]
    chosen = [door.whole("a layer", number, 0) for number in numbers]
    check_layers(chosen, depth, "layers")
    return chosen


def _texts(texts: Any) -> list[str]:
    if isinstance(texts, str | bytes | dict | pd.DataFrame) or not isinstance(texts, Iterable):
        raise BadInput(f"texts is {door.a_thing(texts)}; it must be a list of texts, such as ['a text', 'another']")
    listed = list(texts)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise BadInput(f"texts[{number}] is {door.a_thing(text)}, which is no text; leave it out")
    if len(listed) < 3:
        raise BadInput(f"{len(listed)} texts are too few: training, validation and test need one each")
    return [str(text) for text in listed]


class Temporary:
    """A folder that goes when nothing refers to this any longer, at the latest when Python ends."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="strata-"))
        finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def home_of(folder: str | Path | None) -> tuple[Temporary | None, Path]:
    """What keeps the folder alive, and the folder: a new one of that name, or a temporary one."""
    if folder is None:
        home = Temporary()
        return home, home.path
    root = Path(folder)
    if root.exists() and any(root.iterdir()):
        raise BadInput(f"{root} is not empty; name a new folder")
    root.mkdir(parents=True, exist_ok=True)
    return None, root


def _corpus(
    source: Path, columns: dict[str, str], folder: Path, seed: int, kind: str, validation: float, test: float
) -> dict[str, Any]:
    """Write the texts with their splits; none is dropped for being short, long or like another."""
    changes = {
        "sources": [{"source": str(source), **columns}],
        "documents": None,
        "min_chars": 0,
        "max_chars": None,
        "near_duplicates": None,
        "balance": None,
        "validation": validation,
        "test": test,
    }
    folder.mkdir()
    section = {"corpus": defaults.changed(defaults.section("fetch")["corpus"], changes)}
    return corpus.build(Corpus.model_validate(section["corpus"]), seed, folder, kind)


def kept(
    row_source: RowSource,
    layers: list[int],
    shard_rows: int,
    facts: dict[str, Any],
    text: dict[str, Any],
    root: Path,
    lm: LanguageModel | None,
    home: Any,
) -> dict[int, LayerActivations]:
    """Make the rows of ``layers`` in one pass, and open them."""
    work = root / "work"
    by_split = {split: read.documents(root / "corpus", split) for split in read.SPLITS}
    keep_contexts(row_source, by_split, text["splits"], facts, work / "tokens")
    with torch.inference_mode():
        write_shards(row_source, open_contexts(work / "tokens"), layers, shard_rows, facts, work)
    resume.deliver(work, root, ["tokens", *map(str, layers)])

    contexts = open_contexts(root / "tokens")
    return {
        layer: LayerActivations(open_activations(root / str(layer)), contexts, root / "corpus", lm, home)
        for layer in layers
    }
