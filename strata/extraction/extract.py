"""One forward pass, stopped after the last wanted block, writes the activations of every wanted layer."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from strata.corpus.read import GIVEN, SENTENCE, SPLITS
from strata.device import launch
from strata.extraction.contexts import Layout, fill, tokenise, until, write
from strata.extraction.knobs import Extract
from strata.lm.model import LanguageModel, capture, check_hook, forward_until
from strata.rows.shards import DTYPE, Activations, Contexts, ShardWriter, identity, mapped, shard_name, writing
from strata.rows.spread import spread
from strata.run import files, resume
from strata.run.door import BadInput


def check_room(folder: Path, params: Extract, layers: int, width: int, weights: int, processes: int = 1) -> None:
    """Refuse before the start what disk or memory cannot hold. ``weights``: bytes of the model, which each of the
    ``processes`` on this machine loads."""
    files.need_disk(folder, params.tokens * width * DTYPE.itemsize * layers, f"extract ({layers} layers)")
    needed, free = (weights + 10**9) * processes, psutil.virtual_memory().available
    if needed > free:
        each = f" in each of {processes} processes" * (processes > 1)
        raise BadInput(
            f"extract needs {needed / 1e9:.1f} GB of memory (the model plus 1 GB{each}); {free / 1e9:.1f} are free"
        )


def layout(lm: LanguageModel, params: Extract) -> Layout:
    """How this model's contexts are built."""
    limit = lm.positions
    if limit is not None and params.context > limit:
        raise BadInput(f"params.yaml: extract.context is {params.context}, but the model reads at most {limit} tokens")
    return Layout(params.context, params.pack, lm.bos, lm.bos, frozenset(lm.special_ids().tolist()))


def write_contexts(
    corpus: dict[str, Iterator[dict[str, Any]]],
    counts: dict[str, int],
    lm: LanguageModel,
    params: Extract,
    folder: Path,
) -> dict[str, Any]:
    """Tokenise each split's documents up to its share of ``params.tokens`` (``counts``: its number of documents)."""
    plan = layout(lm, params)
    total = sum(counts.values())
    splits = {
        split: until(fill(tokenise(corpus[split], lm.read), plan), round(params.tokens * counts[split] / total))
        for split in SPLITS
    }
    meta = write(splits, plan, folder, params.tokens)
    if meta["rows"] == 0:
        raise BadInput("the corpus gives no activation rows: it holds no tokens but special ones")
    return meta


Forward = Callable[[np.ndarray, Tensor, int], dict[int, Tensor]]  # tokens, rows to keep, first context -> rows by layer
Corpus = dict[str, Iterator[dict[str, Any]]]  # split -> its documents
Write = Callable[[Corpus, dict[str, int], Path], dict[str, Any]]  # and how many they are -> what meta.json says


@dataclass(frozen=True)
class Reading:
    """How documents become rows of ``width``: ``write`` lays their contexts out, ``forward`` makes the rows of
    ``batch_size`` contexts. ``facts``: what the artifacts say of it."""

    facts: dict[str, Any]
    width: int
    batch_size: int
    write: Write
    forward: Forward


def keep_contexts(
    reading: Reading, corpus: Corpus, counts: dict[str, int], facts: dict[str, Any], folder: Path
) -> None:
    """Write the contexts of ``corpus`` and their meta.json, sealed, unless an earlier try left them whole."""
    meta = resume.kept_json(folder / "meta.json")
    if meta is None or not all(resume.whole(folder / file["file"]) for file in meta["files"]):
        resume.keep_json(folder / "meta.json", {**facts, **reading.write(corpus, counts, folder)})


def write_shards(
    reading: Reading, contexts: Contexts, layers: Sequence[int], size: int, facts: dict[str, Any], folder: Path
) -> None:
    """Write `<folder>/<L>/shard-*.safetensors`, of ``size`` rows, and, at the end, `<folder>/<L>/meta.json` for each
    layer.

    Shards are sealed, and those that are whole are kept: a killed pass goes on after them. Several processes take
    turns, a shard each, and the first writes meta.json. ``facts`` go into meta.json and, in part, into the shards'
    headers.
    """
    total, width = contexts.meta["rows"], reading.width
    metas = {layer: {**facts, "layer": layer, "width": width, "rows": total, "shard_rows": size} for layer in layers}
    mine = {n: min(size, total - n * size) for n in range(launch.rank(), -(-total // size), launch.world())}
    wanted = {number: rows for number, rows in mine.items() if not _is_whole(folder, layers, number)}
    pieces = _pieces(reading, contexts, size, wanted)
    share, done = sum(mine.values()), sum(mine.values()) - sum(wanted.values())
    silent = None if launch.rank() == 0 else True
    with tqdm(total=share, initial=done, desc="extract", unit=" rows", disable=silent) as bar:
        for number, rows in wanted.items():
            with ExitStack() as stack:
                writers = {
                    layer: stack.enter_context(_sealed(folder / str(layer), number, rows, meta))
                    for layer, meta in metas.items()
                }
                while rows:
                    piece = next(pieces)
                    for layer in layers:
                        writers[layer].append(piece[layer])
                    rows -= len(piece[layers[0]])
                    bar.update(len(piece[layers[0]]))
    launch.barrier()
    for layer, meta in metas.items() if launch.rank() == 0 else ():
        _finish(folder / str(layer), {**meta, "splits": contexts.meta["splits"]})


@contextmanager
def _sealed(folder: Path, number: int, rows: int, meta: dict[str, Any]) -> Iterator[ShardWriter]:
    """A shard for appending, which takes its name when whole."""
    with (
        resume.sealing(folder / shard_name(number)) as temporary,
        writing(temporary, rows, meta["width"], identity(meta, number), dtype_of(meta)) as shard,
    ):
        yield shard


def _is_whole(folder: Path, layers: Sequence[int], number: int) -> bool:
    """Whether every layer has that shard; one that only some layers have is written again."""
    return all(resume.whole(folder / str(layer) / shard_name(number)) for layer in layers)


def _pieces(reading: Reading, contexts: Contexts, size: int, wanted: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """The rows of the ``wanted`` shards of ``size`` rows in order, {layer: (row, width)}, cut where a batch or a shard
    ends.

    The model sees only batches of contexts that have such rows; batches are the same whatever is wanted.
    """
    count, at = contexts.meta["contexts"][SPLITS[-1]][1], 0
    for first in range(0, count, reading.batch_size):
        tokens, documents = contexts.read(first, min(first + reading.batch_size, count))
        kept = torch.from_numpy(documents >= 0).flatten().nonzero().flatten()
        end = at + len(kept)
        here = [number for number in range(at // size, -(-end // size)) if number in wanted and end > at]
        batch = reading.forward(tokens, kept, first) if here else {}
        for number in here:
            part = slice(max(number * size - at, 0), min((number + 1) * size, end) - at)
            yield {layer: x[part] for layer, x in batch.items()}
        at = end


def language(lm: LanguageModel, layers: Sequence[int], params: Extract) -> Reading:
    """Rows of a language model. They do not depend on the batch size or the number of processes, because a context
    always has the same length. Raises BadInput for a hook that the model does not have at one of ``layers``."""
    check_hook(lm, params.hook, layers)

    def write(corpus: Corpus, counts: dict[str, int], folder: Path) -> dict[str, Any]:
        return write_contexts(corpus, counts, lm, params, folder)

    def forward(tokens: np.ndarray, kept: Tensor, first: int) -> dict[int, Tensor]:
        with torch.inference_mode(), capture(lm, params.hook, layers) as seen:
            forward_until(lm, max(layers), tokens=torch.from_numpy(tokens).to(lm.device, torch.long))
        flat = {layer: seen[layer].to("cpu").flatten(0, 1).index_select(0, kept) for layer in layers}
        return {layer: stored(rows, f"activations of layer {layer}", first, params) for layer, rows in flat.items()}

    return Reading({"hook": params.hook, "forward": params.dtype}, lm.width, params.batch_size, write, forward)


def dtype_of(meta: dict[str, Any]) -> torch.dtype:
    """What extract keeps rows of ``meta`` in: vectors are kept as they were given, what a model made in bfloat16."""
    return torch.float32 if meta["hook"] == GIVEN else DTYPE


def stored(rows: Tensor, what: str, first: int, params: Extract) -> Tensor:
    """The rows as they are kept. ``what`` they are and the ``first`` context of theirs are for the sentence of the
    BadInput that is raised where one is not finite."""
    rows = rows.to(DTYPE)
    if not torch.isfinite(torch.stack(torch.aminmax(rows))).all():  # 25 times cheaper than isfinite of every element
        cure = "the model itself makes them" if params.dtype == "float32" else "try extract.dtype: float32"
        raise BadInput(f"NaN or infinity in the {what}, in or after context {first}; {cure}")
    return rows


def _finish(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json with each shard's hash and the statistics that training starts from."""
    number = -(-meta["rows"] // meta["shard_rows"])
    shards = [
        {
            "file": shard_name(i),
            "rows": min(meta["shard_rows"], meta["rows"] - i * meta["shard_rows"]),
            "sha256": resume.sealed_hash(folder / shard_name(i)),
        }
        for i in range(number)
    ]
    meta = {**meta, "dtype": str(dtype_of(meta)).removeprefix("torch."), "shards": shards}
    files.write_json(folder / "meta.json", {**meta, **_statistics(mapped(folder, meta))})


def _statistics(activations: Activations) -> dict[str, Any]:
    """Mean, scale and median norm of the training rows, over fixed blocks: the same for any batch."""
    first, end = activations.split("train")
    of_documents = activations.meta["hook"] in (GIVEN, SENTENCE)
    what = "vectors" if of_documents else f"activations of layer {activations.layer}"
    found = spread(lambda: activations.blocks(first, end), what)
    return {"scale": found.scale, "median_norm": found.median_norm, "mean": found.mean.tolist()}
