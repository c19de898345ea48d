"""Stage extract_tasks: run the model over the distinct prompts of the tasks once, and write every layer."""

from pathlib import Path
from typing import Any

from stages.select.layers import extracted
from strata.corpus import read
from strata.device.machine import CPU, Machine, need_memory, start
from strata.extraction.knobs import Extract
from strata.lm.model import DTYPES, check_layers, forward_dtype, load, loaded_bytes
from strata.rows.shards import DTYPE
from strata.run import params, resume
from strata.run.files import write_json
from strata.tasks import activations
from strata.tasks import read as task_files
from strata.tasks.knobs import Tasks

MEMORY = 10**9  # bytes beside the model


def main(lm: str, listed: str, layers: str, target: str) -> None:
    """LM: what fetch_lm wrote; LISTED: the tasks and their prompts; LAYERS: what select wrote of the layers to store;
    TARGET: the folder that gets `<layer>/` for each of them.

    Example: dvc repro extract_tasks
    """
    numbers, meta = extracted(Path(layers)), task_files.meta(Path(listed))
    if meta.get("skipped"):
        for layer in numbers:
            write_json(Path(target) / str(layer) / "meta.json", meta)
        return

    model = read.lm_meta(Path(lm))
    knobs = params.load("extract", Extract)
    tasks = params.check(params.load("evaluate", dict[str, Any]).get("tasks"), Tasks, "params.yaml: evaluate.tasks")
    machine = params.load("machine", Machine)
    device = start(machine)
    knobs = knobs.model_copy(update={"dtype": forward_dtype(knobs.dtype, device)})
    check_layers(numbers, model["blocks"])
    shard = knobs.shard_rows * model["width"] * DTYPE.itemsize  # that of every layer is in memory, and a copy of one
    held = loaded_bytes(model, knobs.dtype) + MEMORY + shard * (len(numbers) + 1)
    need_memory(held, CPU, "extract_tasks", "lower extract.shard_rows, or set evaluate.tasks.sources: []")

    source, options = read.lm_path(Path(lm))
    loaded = load(source, DTYPES[knobs.dtype], device, **options)
    tokens = activations.tokenized(loaded, task_files.prompts(Path(listed)), tasks.tokens)
    activations.check_room(Path(target), tokens, tasks.pooling, len(numbers), loaded.width)

    facts = {
        "model": read.model_facts(model),
        "listed": meta["files"],
        "tokens": tasks.tokens,
        "pooling": tasks.pooling,
    }
    inputs = {  # unfinished work of other inputs is not used
        **facts,
        "layers": numbers,
        "extract": knobs.model_dump(include={"hook", "context", "batch_size", "dtype", "shard_rows"}),
        "machine": [device.type, machine.threads],
    }
    with resume.scratch("extract_tasks", inputs) as work:
        positions = knobs.batch_size * knobs.context
        activations.write(loaded, tokens, knobs.hook, numbers, facts, positions, knobs.shard_rows, work)
        resume.deliver(work, Path(target), list(map(str, numbers)))
