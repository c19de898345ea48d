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
    """Refuse, before any work is done, an extraction that disk or memory cannot hold.

    ``weights``: bytes of the model, which each of the ``processes`` on this machine loads.
    """
    files.need_disk(folder, params.tokens * width * DTYPE.itemsize * layers, f"extract ({layers} layers)")
    needed, free = (weights + 10**9) * processes, psutil.virtual_memory().available
    if needed > free:
        times = f" in each of {processes} processes" * (processes > 1)
        raise BadInput(
            f"extract needs {needed / 1e9:.1f} GB of memory (the model plus 1 GB{times}); {free / 1e9:.1f} are free"
        )


def layout(lm: LanguageModel, params: Extract) -> Layout:
    """Say how this model's contexts are built. Raises BadInput for a context that is too long for the model."""
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
    """Tokenise the documents of each split and write their contexts into ``folder``; return what meta.json says.

    ``corpus``: split -> its documents. ``counts``: split -> their number. Each split gets its share of
    ``params.tokens``, by its number of documents. Raises BadInput where there is no token but special ones.
    """
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


# Tokens (context, position), places of the rows to keep in the flattened tokens (row,), number of the first context
# -> rows (row, width) by layer.
Forward = Callable[[np.ndarray, Tensor, int], dict[int, Tensor]]
Corpus = dict[str, Iterator[dict[str, Any]]]  # split -> its documents
Write = Callable[[Corpus, dict[str, int], Path], dict[str, Any]]  # corpus, documents by split, folder -> meta.json


@dataclass(frozen=True)
class Reading:
    """A way to turn documents into rows of ``width``.

    ``write`` writes the documents' contexts. ``forward`` makes the rows of ``batch_size`` contexts. ``facts``: what
    meta.json says of this way.
    """

    facts: dict[str, Any]
    width: int
    batch_size: int
    write: Write
    forward: Forward


def keep_contexts(
    reading: Reading, corpus: Corpus, counts: dict[str, int], facts: dict[str, Any], folder: Path
) -> None:
    """Write the contexts of ``corpus`` and their meta.json, sealed, unless an interrupted run left them whole."""
    meta = resume.kept_json(folder / "meta.json")
    if meta is None or not all(resume.whole(folder / file["file"]) for file in meta["files"]):
        resume.keep_json(folder / "meta.json", {**facts, **reading.write(corpus, counts, folder)})


def write_shards(
    reading: Reading, contexts: Contexts, layers: Sequence[int], size: int, facts: dict[str, Any], folder: Path
) -> None:
    """Write the shards `<folder>/<L>/shard-*.safetensors` of each layer, and at the end its `<folder>/<L>/meta.json`.

    ``size``: rows of a shard. ``facts`` go into meta.json and, in part, into the shards' headers. Shards are sealed,
    and shards that are whole are kept, so a killed pass goes on after them. Several processes share the shards out in
    turns, and the first process writes meta.json.
    """
    total, width = contexts.meta["rows"], reading.width
    metas = {layer: {**facts, "layer": layer, "width": width, "rows": total, "shard_rows": size} for layer in layers}

    # Shard -> its rows: those of this process, and of these the ones that are still to be written.
    shards = -(-total // size)
    own_shards = {n: min(size, total - n * size) for n in range(launch.rank(), shards, launch.world())}
    missing = {shard: rows for shard, rows in own_shards.items() if not _is_whole(folder, layers, shard)}

    pieces = _pieces(reading, contexts, size, missing)
    own_rows = sum(own_shards.values())
    written_rows = own_rows - sum(missing.values())
    silent = None if launch.rank() == 0 else True
    with tqdm(total=own_rows, initial=written_rows, desc="extract", unit=" rows", disable=silent) as bar:
        for shard, shard_rows in missing.items():
            with ExitStack() as stack:
                writers = {
                    layer: stack.enter_context(_sealed(folder / str(layer), shard, shard_rows, meta))
                    for layer, meta in metas.items()
                }
                rows_left = shard_rows
                while rows_left:
                    piece = next(pieces)  # never crosses the end of a shard
                    for layer in layers:
                        writers[layer].append(piece[layer])
                    rows_left -= len(piece[layers[0]])
                    bar.update(len(piece[layers[0]]))

    launch.barrier()
    for layer, meta in metas.items() if launch.rank() == 0 else ():
        _finish(folder / str(layer), {**meta, "splits": contexts.meta["splits"]})


@contextmanager
def _sealed(folder: Path, number: int, rows: int, meta: dict[str, Any]) -> Iterator[ShardWriter]:
    """Open shard ``number`` for appending its ``rows``; it takes its name when it is whole."""
    with (
        resume.sealing(folder / shard_name(number)) as temporary,
        writing(temporary, rows, meta["width"], identity(meta, number), dtype_of(meta)) as shard,
    ):
        yield shard


def _is_whole(folder: Path, layers: Sequence[int], number: int) -> bool:
    """Say whether every layer has shard ``number``. A shard that only some layers have is written again."""
    return all(resume.whole(folder / str(layer) / shard_name(number)) for layer in layers)


def _pieces(reading: Reading, contexts: Contexts, size: int, wanted: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Yield the rows of the ``wanted`` shards in order, {layer: (row, width)}, cut where a batch or a shard ends.

    ``size``: rows of a shard. Batches of contexts are the same whatever is wanted, but the model runs only on those
    that have rows of a wanted shard.
    """
    context_count = contexts.meta["contexts"][SPLITS[-1]][1]
    row = 0  # the first row of the batch
    for context in range(0, context_count, reading.batch_size):
        tokens, documents = contexts.read(context, min(context + reading.batch_size, context_count))
        kept = torch.from_numpy(documents >= 0).flatten().nonzero().flatten()  # (row,) places in the flattened tokens
        end = row + len(kept)

        shards = [shard for shard in range(row // size, -(-end // size)) if shard in wanted and end > row]
        batch = reading.forward(tokens, kept, context) if shards else {}
        for shard in shards:
            part = slice(max(shard * size - row, 0), min((shard + 1) * size, end) - row)
            yield {layer: activations[part] for layer, activations in batch.items()}
        row = end


def language(lm: LanguageModel, layers: Sequence[int], params: Extract) -> Reading:
    """Read the rows of a language model at ``params.hook`` of ``layers``.

    The rows do not depend on the batch size or the number of processes, because a context always has the same length.
    Raises BadInput for a hook that cannot be read at one of the layers.
    """
    check_hook(lm, params.hook, layers)

    def write(corpus: Corpus, counts: dict[str, int], folder: Path) -> dict[str, Any]:
        return write_contexts(corpus, counts, lm, params, folder)

    def forward(tokens: np.ndarray, kept: Tensor, first: int) -> dict[int, Tensor]:
        with torch.inference_mode(), capture(lm, params.hook, layers) as captured:
            forward_until(lm, max(layers), tokens=torch.from_numpy(tokens).to(lm.device, torch.long))
        kept_rows = {layer: captured[layer].to("cpu").flatten(0, 1).index_select(0, kept) for layer in layers}
        return {
            layer: stored(rows, f"activations of layer {layer}", first, params) for layer, rows in kept_rows.items()
        }

    return Reading({"hook": params.hook, "forward": params.dtype}, lm.width, params.batch_size, write, forward)


def dtype_of(meta: dict[str, Any]) -> torch.dtype:
    """Return the dtype of the stored rows: float32 for vectors of the corpus, bfloat16 for the rows of a model."""
    return torch.float32 if meta["hook"] == GIVEN else DTYPE


def stored(rows: Tensor, what: str, first: int, params: Extract) -> Tensor:
    """Convert rows (row, width) to the stored dtype. Raises BadInput where one is not finite.

    ``what`` the rows are, and the number of the ``first`` context of theirs, are for its message.
    """
    rows = rows.to(DTYPE)
    if not torch.isfinite(torch.stack(torch.aminmax(rows))).all():  # 25 times cheaper than isfinite of every element
        cure = "the model itself makes them" if params.dtype == "float32" else "try extract.dtype: float32"
        raise BadInput(f"NaN or infinity in the {what}, in or after context {first}; {cure}")
    return rows


def _finish(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json with each shard's hash and the statistics that training starts from."""
    count = -(-meta["rows"] // meta["shard_rows"])
    shards = [
        {
            "file": shard_name(number),
            "rows": min(meta["shard_rows"], meta["rows"] - number * meta["shard_rows"]),
            "sha256": resume.sealed_hash(folder / shard_name(number)),
        }
        for number in range(count)
    ]
    meta = {**meta, "dtype": str(dtype_of(meta)).removeprefix("torch."), "shards": shards}
    files.write_json(folder / "meta.json", {**meta, **_statistics(mapped(folder, meta))})


def _statistics(activations: Activations) -> dict[str, Any]:
    """Compute mean, scale and median norm of the training rows, in fixed blocks: they are the same for any batch."""
    start, end = activations.split("train")
    of_documents = activations.meta["hook"] in (GIVEN, SENTENCE)
    what = "vectors" if of_documents else f"activations of layer {activations.layer}"
    statistics = spread(lambda: activations.blocks(start, end), what)
    return {"scale": statistics.scale, "median_norm": statistics.median_norm, "mean": statistics.mean.tolist()}
