"""Say what the pipeline would cost, stage by stage, before it is spent: `python -m src.plan train.latents=16384`."""

import shutil
import sys
from pathlib import Path
from typing import Any

import psutil

from apps.plan import speed
from apps.plan.cost import Plan
from apps.plan.model import find_model
from apps.plan.rows import rows
from apps.plan.table import disk, size, table
from apps.plan.words import changed, split
from stages.select.whole import whole
from strata import auto
from strata.corpus import read
from strata.device.machine import keep_memory, start
from strata.lm.model import DTYPES, check_layers
from strata.run import params
from strata.run.door import run

DATA = Path("data")  # where earlier runs left what the plan can look at


def main(*words: str) -> None:
    """WORDS: changes to params.yaml, as `dvc exp run -S` takes them (train.k=32 'layers=[3,6]'). For a model that is
    not here yet, also width=768 blocks=12 parameters=124e6; for a corpus that is not, documents=5000.

    Example: python -m src.plan train.latents=16384 'layers=[3,6,9]'
    """
    changes, facts = split(words)
    values = changed(params.read(), changes)
    section = whole(values)
    model = find_model(section.fetch.lm, DATA / "lm", facts)
    if section.fetch.lm.kind == read.LANGUAGE:
        check_layers(section.layers, model.blocks)

    # The number of rows decides what auto becomes, and so the knobs that are planned with.
    counts = rows(section, facts, DATA)
    size = auto.Size(section.fetch.lm.kind, counts.train, model.width)
    section = whole(settled(values, size))

    device = start(section.machine)
    keep_memory()
    batch = section.extract.batch_size * counts.context
    measured = speed.measure(model.width, section.train, batch, DTYPES[section.extract.dtype], device)
    costs = Plan(section, model, counts, measured).costs()

    print(f"{model.width} wide, {model.blocks} blocks, from {model.source}; on this machine as busy as it is now\n")
    print(table(costs), end="")
    auto.tell("train", values["train"], section.train.model_dump(), size)
    if counts.note:
        print(f"\n{counts.note}")
    warn(disk(costs), max(cost.memory or 0 for cost in costs))


def settled(values: dict[str, Any], size: auto.Size) -> dict[str, Any]:
    """Return ``values`` of params.yaml with numbers in place of each auto in train, and in by_layer for one layer."""
    by_layer = {}
    for layer, override in values["by_layer"].items():
        merged = auto.train({**values["train"], **override}, size)
        by_layer[layer] = {name: merged[name] for name in (*override, *auto.TOKENS)}
    return {**values, "train": auto.train(values["train"], size), "by_layer": by_layer}


def warn(needed: float, held: float) -> None:
    """Warn where this machine has too little disk or memory. ``needed``: bytes of disk; ``held``: bytes of memory."""
    free, available = shutil.disk_usage(".").free, psutil.virtual_memory().available
    if needed > free:
        sys.stderr.write(f"plan: {size(needed)} of disk are needed, and {size(free)} are free\n")
    if held > available:
        sys.stderr.write(f"plan: {size(held)} of memory are needed, and {size(available)} are free\n")


if __name__ == "__main__":
    run(main)
