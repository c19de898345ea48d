"""What the pipeline would cost, stage by stage, before anything is spent: `python -m src.plan train.latents=16384`."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from apps.plan import speed
from apps.plan.cost import Plan
from apps.plan.model import find_model
from apps.plan.rows import rows
from apps.plan.table import disk, size, table
from apps.plan.words import changed, split
from apps.recipes import checkout, layers, recipe
from apps.recipes.check import asked, differences
from apps.recipes.words import written
from stages.select.whole import whole
from strata import auto
from strata.corpus import read
from strata.corpus.knobs import LM
from strata.device.machine import keep_memory, start
from strata.lm.model import DTYPES, check_layers, forward_dtype
from strata.rows.size import Size
from strata.run import params
from strata.run.door import BadUsage, run

DATA = Path("data")  # what earlier runs left there is looked at


def main(*words: str) -> None:
    """WORDS: a recipe, if you have one, and changes to params.yaml, as `dvc exp run -S` has them (train.k=32
    'layers=[3,6]'); of a model that is not here yet also width=768 blocks=12 parameters=124e6, of a corpus
    documents=5000.

    Example: python -m src.plan recipes/sentences.yaml train.latents=1024
    """
    named = [word for word in words if recipe.is_recipe(word)]
    if len(named) > 1:
        raise BadUsage(f"{named[1]} is one recipe too many; a plan has one")
    changes, facts = split(word for word in words if word not in named)

    def depth(lm: LM) -> int:
        return int(facts["blocks"]) if "blocks" in facts else layers.depth(lm)

    if not named:
        values = changed(params.read(), changes)
        plan(changed(values, layers.written_out(values, depth)), facts)
        return

    base = params.parse_yaml(checkout.committed(), checkout.PARAMS)
    own = [f"{key}={written(value)}" for key, value in changes.items()]
    several = asked(base, recipe.read(Path(named[0])), own, depth).values
    for number, (values, what) in enumerate(zip(several, differences(several), strict=True), 1):
        if what:
            print(f"{chr(10) * (number > 1)}{number} of {len(several)}: {what}")
        plan(values, facts)


def plan(values: dict[str, Any], facts: dict[str, float]) -> None:
    """Print what a run with these ``values`` of params.yaml costs. ``facts``: of what is not here yet."""
    section = whole(values)
    model = find_model(section.fetch.lm, DATA / "lm", facts)
    if section.fetch.lm.kind == read.LANGUAGE:
        check_layers(section.extracted, model.blocks)
    found = rows(section, facts, DATA)
    size = Size(section.fetch.lm.kind, found.train, model.width)
    section = whole(settled(values, size))

    device = start(section.machine)
    extract = section.extract.model_copy(update={"dtype": forward_dtype(section.extract.dtype, device)})
    section = replace(section, extract=extract)
    keep_memory()
    batch = section.extract.batch_size * found.context
    measured = speed.measure(model.width, section.train, batch, DTYPES[section.extract.dtype], device)
    costs = Plan(section, model, found, measured).costs()

    print(f"{model.width} wide, {model.blocks} blocks, from {model.source}; on this machine as busy as it is now\n")
    print(table(costs), end="")
    auto.tell("train", values["train"], section.train.model_dump(), size)
    if found.note:
        print(f"\n{found.note}")
    warn(disk(costs), max(cost.memory or 0 for cost in costs))


def settled(values: dict[str, Any], size: Size) -> dict[str, Any]:
    """``values`` of params.yaml with numbers in place of what is auto in train, and in it for one layer."""
    by_layer = {}
    for layer, override in values["by_layer"].items():
        merged = auto.train({**values["train"], **override}, size)
        by_layer[layer] = {name: merged[name] for name in (*override, *auto.TOKENS)}
    return {**values, "train": auto.train(values["train"], size), "by_layer": by_layer}


def warn(needed: float, held: float) -> None:
    """Say what this machine lacks."""
    free, available = shutil.disk_usage(".").free, psutil.virtual_memory().available
    if needed > free:
        sys.stderr.write(f"plan: {size(needed)} of disk are needed, and {size(free)} are free\n")
    if held > available:
        sys.stderr.write(f"plan: {size(held)} of memory are needed, and {size(available)} are free\n")


if __name__ == "__main__":
    run(main)
