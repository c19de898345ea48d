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

from strata.corpus.read import OWN_VECTORS, SENTENCE, SPLITS
from strata.device import launch
from strata.extraction.contexts import Layout, fill, tokenise, until, write
from strata.extraction.knobs import Extract
from strata.lm.model import LanguageModel, capture, check_hook, forward_until
from strata.rows.shards import DTYPE, Activations, Contexts, ShardWriter, identity, mapped, shard_name, writing
from strata.rows.spread import spread
from strata.run import files, resume
from strata.run.door import BadInput
from strata.run.progress import Progress


def check_room(folder: Path, params: Extract, layers: int, width: int, weights: int, processes: int = 1) -> None:
    """Refuse, before any work is done, an extraction that disk or memory cannot hold.

    ``layers``: their number. ``weights``: bytes of the model, which each of the ``processes`` on this machine loads.
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
    # Padding may be any token, because causal attention never looks to the right.
    return Layout(
        context=params.context,
        pack=params.pack,
        bos=lm.bos,
        padding=lm.bos,
        special=frozenset(lm.special_ids().tolist()),
    )


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
    documents = sum(counts.values())
    splits = {}
    for split in SPLITS:
        wanted_rows = round(params.tokens * counts[split] / documents)
        contexts = fill(tokenise(corpus[split], lm.read), plan)
        splits[split] = until(contexts, wanted_rows)  # lazy: whole contexts, until they hold so many rows or more

    meta = write(splits, plan, folder, params.tokens)
    if meta["rows"] == 0:
        raise BadInput("the corpus gives no activation rows: it holds no tokens but special ones")
    return meta


# A forward pass: the tokens (context, position), the places of the rows to keep in the flattened tokens (row,), and the
# number of the first context -> layer -> its rows (row, width).
Forward = Callable[[np.ndarray, Tensor, int], dict[int, Tensor]]
Corpus = dict[str, Iterator[dict[str, Any]]]  # split -> its documents
Write = Callable[[Corpus, dict[str, int], Path], dict[str, Any]]  # corpus, documents by split, folder -> meta.json


@dataclass(frozen=True)
class RowSource:
    """What makes activation rows of documents: a language model, a sentence model, or the vectors in the corpus.

    ``write`` writes the documents as contexts. ``forward`` then makes the rows of ``batch_size`` contexts at a time,
    (row, ``width``) for each layer. ``facts``: what meta.json says of the source.
    """

    facts: dict[str, Any]
    width: int
    batch_size: int
    write: Write
    forward: Forward


def keep_contexts(
    source: RowSource, corpus: Corpus, counts: dict[str, int], facts: dict[str, Any], folder: Path
) -> None:
    """Write the contexts of ``corpus`` and their meta.json, unless an interrupted run left them whole.

    Their hashes are kept beside them (see resume.py), so that a damaged file is found. One process alone does this.
    ``counts``: split -> number of documents. ``facts`` go into meta.json.
    """
    meta = resume.kept_json(folder / "meta.json")
    if meta is None or not all(resume.whole(folder / file["file"]) for file in meta["files"]):
        resume.keep_json(folder / "meta.json", {**facts, **source.write(corpus, counts, folder)})


def write_shards(
    source: RowSource, contexts: Contexts, layers: Sequence[int], size: int, facts: dict[str, Any], folder: Path
) -> None:
    """Write the shards `<folder>/<L>/shard-*.safetensors` of each layer, and at the end its `<folder>/<L>/meta.json`.

    ``size``: rows of a shard. ``facts`` go into meta.json; a shard's header names the model and the hook. The hash of a
    finished shard is kept beside it (see resume.py). Shards that are whole are not written again, so a killed pass goes
    on after them. Several processes share the shards out in turns, and the first process writes meta.json.
    """
    total, width = contexts.meta["rows"], source.width
    metas = {layer: {**facts, "layer": layer, "width": width, "rows": total, "shard_rows": size} for layer in layers}

    # Shard number -> its rows. This process makes every launch.world()-th shard, and of these only the missing ones.
    shards = -(-total // size)
    own_shards = {n: min(size, total - n * size) for n in range(launch.rank(), shards, launch.world())}
    missing = {shard: rows for shard, rows in own_shards.items() if not _is_whole(folder, layers, shard)}

    # One pass over the contexts serves all missing shards: ``pieces`` goes on where the shard before ended.
    pieces = _pieces(source, contexts, size, missing)
    own_rows = sum(own_shards.values())
    kept_rows = own_rows - sum(missing.values())
    with Progress("extract", "rows", own_rows, kept_rows) as progress:
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
                    piece_rows = len(piece[layers[0]])
                    rows_left -= piece_rows
                    progress.update(piece_rows)

    # All shards are written before the first process hashes them.
    launch.barrier()
    if launch.rank() == 0:
        for layer, meta in metas.items():
            _write_meta(folder / str(layer), {**meta, "splits": contexts.meta["splits"]})


@contextmanager
def _sealed(folder: Path, number: int, rows: int, meta: dict[str, Any]) -> Iterator[ShardWriter]:
    """Open shard ``number`` for appending its ``rows``; when it is whole, it takes its name and its hash is kept."""
    with (
        resume.sealing(folder / shard_name(number)) as temporary,
        writing(temporary, rows, meta["width"], identity(meta, number), dtype_of(meta)) as shard,
    ):
        yield shard


def _is_whole(folder: Path, layers: Sequence[int], number: int) -> bool:
    """Say whether every layer has shard ``number``. A shard that only some layers have is written again."""
    return all(resume.whole(folder / str(layer) / shard_name(number)) for layer in layers)


def _pieces(source: RowSource, contexts: Contexts, size: int, wanted: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Yield the rows of the ``wanted`` shards in order, {layer: (row, width)}, cut where a batch or a shard ends.

    ``size``: rows of a shard. The batches of contexts do not depend on which shards are wanted, but the model runs only
    on those batches that hold rows of a wanted shard.

    Example, 10 rows a shard, shards 0 and 2 wanted, batches of rows 0-7, 8-15, 16-23  ->  rows 0-7, 8-9, 20-23.
    """
    _, context_count = contexts.meta["contexts"][SPLITS[-1]]  # the last split ends where the contexts end
    batch_start = 0  # number of the batch's first row, of all rows
    for context in range(0, context_count, source.batch_size):
        tokens, documents = contexts.read(context, min(context + source.batch_size, context_count))
        # (row,) Places in the flattened tokens. Document -1 marks BOS, special tokens and padding, which are no rows.
        kept = torch.from_numpy(documents >= 0).flatten().nonzero().flatten()
        batch_end = batch_start + len(kept)

        # The shards that this batch has rows of; none for a batch of special tokens alone.
        overlapping = range(batch_start // size, -(-batch_end // size)) if len(kept) else ()
        shards = [shard for shard in overlapping if shard in wanted]
        batch = source.forward(tokens, kept, context) if shards else {}
        for shard in shards:
            start, end = max(shard * size, batch_start), min((shard + 1) * size, batch_end)
            part = slice(start - batch_start, end - batch_start)
            yield {layer: activations[part] for layer, activations in batch.items()}
        batch_start = batch_end


def language(lm: LanguageModel, layers: Sequence[int], params: Extract) -> RowSource:
    """Take the activations of a language model at ``params.hook`` of ``layers`` as rows.

    The rows do not depend on the batch size or the number of processes, because a context always has the same length.
    Raises BadInput for a hook that cannot be read at one of the layers.
    """
    check_hook(lm, params.hook, layers)

    def write(corpus: Corpus, counts: dict[str, int], folder: Path) -> dict[str, Any]:
        return write_contexts(corpus, counts, lm, params, folder)

    def forward(tokens: np.ndarray, kept: Tensor, first_context: int) -> dict[int, Tensor]:
        with torch.inference_mode(), capture(lm, params.hook, layers) as captured:
            forward_until(lm, max(layers), tokens=torch.from_numpy(tokens).to(lm.device, torch.long))

        rows_of = {}
        for layer in layers:
            rows = captured[layer].to("cpu").flatten(0, 1)  # (context × position, width)
            rows_of[layer] = stored(rows.index_select(0, kept), f"activations of layer {layer}", first_context, params)
        return rows_of

    return RowSource(
        facts={"hook": params.hook, "forward": params.dtype},
        width=lm.width,
        batch_size=params.batch_size,
        write=write,
        forward=forward,
    )


def dtype_of(meta: dict[str, Any]) -> torch.dtype:
    """Return the dtype of the stored rows: float32 for vectors of the corpus, bfloat16 for the rows of a model."""
    return torch.float32 if meta["hook"] == OWN_VECTORS else DTYPE


def stored(rows: Tensor, what: str, first_context: int, params: Extract) -> Tensor:
    """Convert rows (row, width), one or more, to the stored dtype. Raises BadInput where a number is NaN or infinite.

    The message says ``what`` the rows are, and from which context on they come.
    """
    rows = rows.to(DTYPE)

    # aminmax passes NaN on, so two numbers tell of all. It is 25 times cheaper than isfinite of every element.
    if not torch.isfinite(torch.stack(torch.aminmax(rows))).all():
        cure = "the model itself makes them" if params.dtype == "float32" else "try extract.dtype: float32"
        raise BadInput(f"NaN or infinity in the {what}, in or after context {first_context}; {cure}")
    return rows


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write a layer's meta.json, with each shard's hash and the statistics that training starts from."""
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
    """Compute mean, scale (a factor for training) and median norm of the training rows; see Spread in spread.py.

    Blocks have a fixed size, so that sums have the same order, and the same last bits, for any batch size.
    """
    start, end = activations.split("train")
    of_documents = activations.meta["hook"] in (OWN_VECTORS, SENTENCE)
    what = "vectors" if of_documents else f"activations of layer {activations.layer}"
    statistics = spread(lambda: activations.blocks(start, end), what)
    return {"scale": statistics.scale, "median_norm": statistics.median_norm, "mean": statistics.mean.tolist()}
