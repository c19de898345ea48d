"""Distinct prompts -> their activations at every layer, in one pass of the model: `data/tasks/activations/<L>/`.

A prompt is read as BOS and its tokens, of which the first or the last are kept where it is too long. Prompts of like
length are read together and padded to a multiple of PAD, so that short ones do not cost as much as long ones; causal
attention never looks at the padding. What is stored is the row of the last token, or with mean pooling those of all
tokens but BOS.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strata.lm.model import LanguageModel, capture, check_hook, forward_until
from strata.rows.shards import DTYPE, shard_name
from strata.run import files, resume
from strata.run.door import BadInput
from strata.run.params import Hook
from strata.run.progress import Progress
from strata.tasks.knobs import Keep, Pooling

PAD = 8  # lengths that prompts are padded to are multiples of it
TOKENIZED = 1024  # prompts that the tokenizer reads at a time


def tokenized(lm: LanguageModel, prompts: Iterable[tuple[str, Keep]], most: int) -> list[Tensor]:
    """Tokenise ``prompts`` into BOS and at most ``most`` - 1 tokens each, int32.

    Raises BadInput for a prompt without any.
    """
    texts = list(prompts)
    tokens = []
    for start in range(0, len(texts), TOKENIZED):
        part = texts[start : start + TOKENIZED]
        for (text, keep), ids in zip(part, lm.read([text for text, _ in part]), strict=True):
            if not ids:
                raise BadInput(f"the prompt {text[:40]!r} of a task has no token that the model reads")
            kept = ids[: most - 1] if keep == "first" else ids[-(most - 1) :]
            tokens.append(torch.tensor([lm.bos, *kept], dtype=torch.int32))
    return tokens


def batches(lengths: Sequence[int], positions: int, shard_rows: int, all_rows: bool) -> list[list[list[int]]]:
    """Share prompts out among shards, and those of a shard among passes of the model; return their numbers.

    ``lengths``: tokens of each prompt, BOS included. ``positions``: padded tokens that a pass holds at the most, unless
    one prompt has more. A shard has about ``shard_rows`` rows: of a prompt one, or with ``all_rows`` all but BOS.
    """
    order = sorted(range(len(lengths)), key=lambda number: (lengths[number], number))
    shards: list[list[list[int]]] = []
    rows, padded = shard_rows, 0  # of the last shard; of the last pass
    for number in order:
        if rows >= shard_rows:
            shards.append([])
            rows, padded = 0, 0
        length = -(-lengths[number] // PAD) * PAD
        passes = shards[-1]
        if length != padded or (len(passes[-1]) + 1) * length > positions:
            passes.append([])
            padded = length
        passes[-1].append(number)
        rows += lengths[number] - 1 if all_rows else 1
    return shards


def rows_stored(lengths: Sequence[int], all_rows: bool) -> int:
    """Count the rows that are stored of prompts of these ``lengths``, BOS included."""
    return sum(length - 1 for length in lengths) if all_rows else len(lengths)


def check_room(folder: Path, tokens: Sequence[Tensor], pooling: Sequence[Pooling], layers: int, width: int) -> None:
    """Refuse, before the model runs, an extraction that the disk of ``folder`` cannot hold."""
    rows = rows_stored([len(ids) for ids in tokens], "mean" in pooling)
    needed = rows * width * DTYPE.itemsize * layers
    fewer = "fewer tasks, prompts or tokens, or pooling: [last]"
    files.need_disk(folder, needed, f"extract_tasks ({rows:,} rows, {layers} layers)", fewer)


def write(
    lm: LanguageModel,
    tokens: Sequence[Tensor],
    hook: Hook,
    layers: Sequence[int],
    facts: Mapping[str, Any],
    positions: int,
    shard_rows: int,
    folder: Path,
) -> None:
    """Write the folders `<folder>/<L>/` of all ``layers``. Shards that a killed run left whole are not made again.

    ``tokens``: those of each prompt. ``facts`` go into meta.json; its ``pooling`` says which rows are stored.
    """
    check_hook(lm, hook, layers)
    all_rows = "mean" in facts["pooling"]
    lengths = [len(ids) for ids in tokens]
    shards = batches(lengths, positions, shard_rows, all_rows)
    with Progress("extract", "prompts", len(tokens)) as progress:
        for number, passes in enumerate(shards):
            paths = {layer: folder / str(layer) / shard_name(number) for layer in layers}
            if not all(resume.whole(path) for path in paths.values()):
                numbers = [prompt for batch in passes for prompt in batch]
                counts = [lengths[prompt] - 1 if all_rows else 1 for prompt in numbers]
                rows = _rows(lm, tokens, passes, hook, layers, all_rows)
                for layer, path in paths.items():
                    resume.keep_tensors(
                        path,
                        {
                            "x": torch.cat(rows.pop(layer)),
                            "prompt": torch.tensor(numbers, dtype=torch.int32),
                            "rows": torch.tensor(counts, dtype=torch.int32),
                        },
                    )
            progress.update(sum(map(len, passes)))

    for layer in layers:
        names = [shard_name(number) for number in range(len(shards))]
        hashes = [{"file": name, "sha256": resume.sealed_hash(folder / str(layer) / name)} for name in names]
        meta = {**facts, "hook": hook, "layer": layer, "width": lm.width, "prompts": len(tokens)}
        files.write_json(folder / str(layer) / "meta.json", {**meta, "shards": hashes})


@torch.inference_mode()
def _rows(
    lm: LanguageModel,
    tokens: Sequence[Tensor],
    passes: Sequence[Sequence[int]],
    hook: Hook,
    layers: Sequence[int],
    all_rows: bool,
) -> dict[int, list[Tensor]]:
    """Run the model on the prompts of a shard; return layer -> the rows of each pass, (row, width) in bfloat16."""
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch in passes:
        longest = max(len(tokens[prompt]) for prompt in batch)
        padded = torch.full((len(batch), -(-longest // PAD) * PAD), lm.bos, dtype=torch.long)
        kept = torch.zeros_like(padded, dtype=torch.bool)
        for row, prompt in enumerate(batch):
            length = len(tokens[prompt])
            padded[row, :length] = tokens[prompt]
            kept[row, 1 if all_rows else length - 1 : length] = True

        with capture(lm, hook, layers) as captured:
            forward_until(lm, max(layers), tokens=padded.to(lm.device))
        for layer in layers:
            x = captured[layer].to("cpu")[kept].to(DTYPE)
            if not torch.isfinite(torch.stack(torch.aminmax(x))).all():
                raise BadInput(f"NaN or infinity in the activations of layer {layer} on prompts of tasks")
            rows[layer].append(x)
    return rows
