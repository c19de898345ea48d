"""Sets of prompts -> balanced binary tasks, and each distinct prompt once: the files of `data/tasks/prompts/`."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from strata.corpus.wheels import WHEELS
from strata.run.door import BadInput, near
from strata.run.files import replacing, sha256, write_json
from strata.tasks.knobs import Keep, Tasks, TaskSource
from strata.tasks.read import PROMPTS, TASKS, Task
from strata.tasks.sources import SHORT, TaskSet, sets

LEAST = 104  # prompts of a task: 100 to judge by, and the fewest of which sae-probes chooses a regression
CLASSES = 100  # of a table, at the most: more are no labels but texts or numbers


def write(knobs: Tasks, seed: int, folder: Path) -> dict[str, Any]:
    """Write the tasks of all sources, and their distinct prompts, into ``folder``; return the content of meta.json.

    One set is in memory at a time. Raises BadInput for a source that cannot be read, a task that is not there or has
    too few prompts, and two tasks of one name.
    """
    tasks: list[Task] = []
    with replacing(folder / PROMPTS) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        numbers = _Numbers(file)
        for source in knobs.sources:
            of_source = [task for table in sets(source) for task in _tasks(table, source, knobs, seed, numbers)]
            tasks += _asked_for(of_source, source)

    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise BadInput(f"params.yaml: evaluate.tasks.sources have two tasks of the name {twice[0]}; rename a file")
    write_json(folder / TASKS, [asdict(task) for task in tasks])

    meta = {
        "prompts": numbers.count,
        "tasks": [task.name for task in tasks],
        "wheels": {name: WHEELS[name].sha256 for source in knobs.sources if (name := source.packaged)},
        "files": [{"file": name, "sha256": sha256(folder / name)} for name in (PROMPTS, TASKS)],
    }
    write_json(folder / "meta.json", meta)
    return meta


class _Numbers:
    """Gives each distinct prompt its number, and writes it to ``file`` when it comes for the first time."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self._known: dict[bytes, int] = {}  # by hash, because prompts may be long

    @property
    def count(self) -> int:
        return len(self._known)

    def __call__(self, prompt: str, keep: Keep) -> int:
        line = json.dumps({"prompt": prompt, "keep": keep}, ensure_ascii=False)
        key = hashlib.sha256(line.encode()).digest()
        if key not in self._known:
            self._known[key] = len(self._known)
            self.file.write(line + "\n")
        return self._known[key]


def _tasks(table: TaskSet, source: TaskSource, knobs: Tasks, seed: int, numbers: _Numbers) -> Iterator[Task]:
    """Make the tasks of a set: one of two classes, or of more classes one for each against the others."""
    keep: Keep = source.keep or ("first" if source.packaged == "bbc-news" else "last")
    counts = Counter(table.targets)
    classes = sorted(counts, key=_order)
    if len(classes) < 2:
        raise BadInput(f"{table.name}: every target is {classes[0]!r}; a task needs prompts of two classes")
    if len(classes) > CLASSES:
        raise BadInput(
            f"{table.name}: {source.target} has {len(classes):,} different values; a task tells classes apart, of "
            f"which a table may have {CLASSES}"
        )

    # One order for all tasks of the set: the others of one class are then mostly those of its sister tasks.
    random = np.random.default_rng([seed, *table.name.encode()])
    order = random.permutation(len(table.prompts))
    all_targets = np.array(table.targets, object)
    others = _of_another_kind(table, classes, knobs, random) if table.ood is not None and "ood" in knobs.regimes else []

    several = len(classes) > 2
    chosen = sorted(classes, key=lambda name: -counts[name]) if several else classes[1:]
    for positive in chosen[: SHORT if source.tasks == "short" else None]:
        targets = all_targets == positive
        places = drawn(table.prompts, targets, order, knobs.prompts, knobs.distinct)
        name = f"{table.name}_{positive}" if several else table.name
        if len(places) < LEAST:
            if several:
                continue  # a rare class
            raise BadInput(
                f"{name} has {len(places)} prompts, as many of both classes; a task needs {LEAST}: "
                "100 to judge by, and some to learn from"
            )
        # Of a task that is not asked for, only the name is needed, to say what there is.
        wanted = isinstance(source.tasks, str) or name in source.tasks
        task = Task(
            name=name,
            source=source.source,
            positive=positive,
            prompts=[numbers(table.prompts[place], keep) for place in places] if wanted else [],
            targets=targets[places].astype(int).tolist(),
        )
        if wanted and table.ood is not None and len(others):
            task.ood_prompts.extend(numbers(table.ood.prompts[place], keep) for place in others)
            task.ood_targets.extend(int(table.ood.targets[place] == positive) for place in others)
            if len(set(task.ood_targets)) < 2:
                raise BadInput(f"{name}: its prompts of another kind are all of one class")
        yield task


def _of_another_kind(
    table: TaskSet, classes: Sequence[str], knobs: Tasks, random: np.random.Generator
) -> NDArray[np.integer]:
    """Return the places of the prompts of another kind by which the tasks of ``table`` are judged, in rising order.

    They are at most ``knobs.prompts``, drawn at random; with ``knobs.distinct`` each text once, and none that has two
    targets or is among the table's own. Raises BadInput where a target is none of the table's ``classes``.
    """
    assert table.ood is not None, "the caller looks"
    if strange := next((target for target in table.ood.targets if target not in classes), None):
        raise BadInput(
            f"{table.name}: a prompt of another kind has the target {strange!r}, and its own have "
            f"{', '.join(map(repr, classes))}"
        )
    order = random.permutation(len(table.ood.prompts))
    if knobs.distinct:
        own = set(table.prompts)
        order = _clear(table.ood.prompts, table.ood.targets, order)
        order = np.array([place for place in order if table.ood.prompts[place] not in own], np.int64)
    return np.sort(order[: knobs.prompts])


def _order(target: str) -> tuple[bool, float, str]:
    """Sort numbers by value, then words."""
    try:
        return False, float(target), target
    except ValueError:
        return True, 0.0, target


def drawn(
    prompts: Sequence[str], targets: NDArray[np.bool_], order: NDArray[np.integer], most: int | None, distinct: bool
) -> NDArray[np.integer]:
    """Draw as many prompts with the target as without it, ``most`` in all; return their places in rising order.

    ``prompts``, ``targets``: (prompt,). ``order``: a random order of them; those that come first in it are drawn.
    ``distinct``: each text counts once, and not at all where it comes with both targets.
    """
    if distinct:
        order = _clear(prompts, targets.tolist(), order)
    inside, outside = order[targets[order]], order[~targets[order]]
    count = min(len(inside), len(outside), *([most // 2] if most else []))
    return np.sort(np.concatenate([inside[:count], outside[:count]]))


def _clear(prompts: Sequence[str], targets: Sequence[Any], order: NDArray[np.integer]) -> NDArray[np.integer]:
    """Keep of the places ``order`` the first of each text, and none of a text that comes with two targets."""
    targets_of: dict[str, set[Any]] = {}
    for prompt, target in zip(prompts, targets, strict=True):
        targets_of.setdefault(prompt, set()).add(target)
    clear = {prompt for prompt, kinds in targets_of.items() if len(kinds) == 1}

    kept = []
    for place in map(int, order):
        if prompts[place] in clear:
            clear.remove(prompts[place])  # the second time it is no longer there
            kept.append(place)
    return np.array(kept, np.int64)


def _asked_for(tasks: list[Task], source: TaskSource) -> list[Task]:
    """Leave out the tasks of a source that it does not name. Raises BadInput where it names one that is not there."""
    names = [task.name for task in tasks]
    if not tasks:
        raise BadInput(f"{source.source} has no class of {LEAST // 2} prompts with as many others, which a task needs")
    if isinstance(source.tasks, str):
        return tasks
    if unknown := [name for name in source.tasks if name not in names]:
        raise BadInput(
            f"{source.source} has no task {unknown[0]!r}; its tasks are {', '.join(names)}{near(unknown[0], names)}"
        )
    return [task for task in tasks if task.name in source.tasks]
