"""Judge dictionaries by binary tasks that others made, beside controls: the section `tasks` of evaluate's report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from strata.evaluation.intervals import drawn_over_both, resampled
from strata.run import resume
from strata.run.progress import each
from strata.sae.sae import SAE
from strata.tasks.columns import pooled
from strata.tasks.knobs import Pooling, Tasks
from strata.tasks.probe import SEED, Drawing, draw, drawings, many_small_ones, probes
from strata.tasks.read import PromptRows, Task

# What is probed: the SAE and its controls; shuffled: the SAE again, where prompts have each other's targets.
OWN, UNTRAINED, ACTIVATIONS, SHUFFLED = "sae", "untrained", "residual", "shuffled"
METRICS = "auc", "f1"
NAMED = 5  # latents of a probe that are listed, the strongest

ByTask = list[dict[str, Any]]  # a row for each task, seed and drawing


@dataclass(frozen=True)
class Judged:
    """What is judged: a layer's ``rows`` of prompts, the ``tasks`` they are of, and the dictionaries by name.

    One of ``dictionaries`` is called `sae`; the others are controls, or other SAEs, that stand beside it. ``replicas``:
    the same SAE trained with other seeds, by name.
    """

    rows: PromptRows
    tasks: Sequence[Task]
    dictionaries: Mapping[str, SAE]
    replicas: Mapping[str, SAE] = field(default_factory=dict)


def judge(judged: Judged, knobs: Tasks, seed: int, processes: int = 1, work: Path | None = None) -> dict[str, Any]:
    """Probe every dictionary, the activations and shuffled labels on every task; return the section.

    ``seed``: the splits have the seeds SEED + ``seed``, and those behind it, ``knobs.seeds`` in all. ``processes``:
    tasks that are probed at a time. ``work``: a folder where each dictionary's results are kept when they are done.
    """
    seeds = range(SEED + seed, SEED + seed + knobs.seeds)
    results: dict[str, ByTask] = {}
    for name, sae in {**judged.dictionaries, **judged.replicas, ACTIVATIONS: None}.items():
        path = work / f"{name}.json" if work else None

        def probed(sae: SAE | None = sae, name: str = name) -> dict[str, ByTask]:
            columns = pooled(judged.rows, knobs.pooling, sae)
            by_task = partial(_by_task, columns, judged.tasks, knobs, seeds, processes, narrow=sae is not None)
            made = {name: by_task(shuffled=False)}
            if name == OWN:
                made[SHUFFLED] = by_task(shuffled=True)
            return made

        results |= resume.once_json(path, probed)

    random, own = np.random.default_rng([seed, judged.rows.meta["layer"]]), [OWN, *judged.replicas]
    return {
        "tasks": len(judged.tasks),
        "prompts": judged.rows.prompts,
        **{regime: _summary(results, own, regime, knobs, random) for regime in knobs.regimes},
        "by_task": _together(results),
    }


def _by_task(
    columns: Mapping[Pooling, csr_matrix],
    tasks: Sequence[Task],
    knobs: Tasks,
    seeds: Sequence[int],
    processes: int,
    narrow: bool,
    shuffled: bool,
) -> ByTask:
    """Probe ``columns`` on every task, seed and drawing; ``narrow``: see :func:`strata.tasks.probe.probes`.

    ``shuffled``: prompts have each other's targets. Threads would wait for each other, because most of a small
    regression is Python.
    """
    work = list(_work(tasks, knobs, seeds))
    probed = (
        delayed(_row)(
            {pooling: matrix[_prompts(task, drawing)].toarray() for pooling, matrix in columns.items()},
            task,
            seed,
            drawing,
            knobs,
            narrow,
            shuffled,
        )
        for task, seed, drawing in work
    )
    rows: Any = Parallel(processes, return_as="generator")(probed)
    return list(each(rows, "probe tasks", "probes", len(work)))


def _row(
    columns: Mapping[Pooling, NDArray[np.float32]],
    task: Task,
    seed: int,
    drawing: Drawing,
    knobs: Tasks,
    narrow: bool,
    shuffled: bool,
) -> dict[str, Any]:
    """Probe the ``columns`` of a task's prompts on one drawing of them, (prompt, column) by pooling.

    With the regime ood the prompts of another kind stand behind the task's own.
    """
    targets, ood = np.array(task.targets), np.array(task.ood_targets)
    if shuffled:
        random = np.random.default_rng([seed, *task.name.encode()])
        targets, ood = random.permutation(targets), random.permutation(ood)
    parts = draw(targets, drawing, seed, ood if drawing.regime == "ood" else None)

    with many_small_ones():
        probed = {
            pooling: probes(table, parts, knobs.k, knobs.penalty, seed, narrow) for pooling, table in columns.items()
        }
    scores = {
        metric: {
            pooling: {k: getattr(probe.scores, metric) for k, probe in by_k.items()} for pooling, by_k in probed.items()
        }
        for metric in METRICS
    }
    strongest = {pooling: by_k[str(max(knobs.k))].latents[:NAMED] for pooling, by_k in probed.items()}
    return {"task": task.name, "seed": seed, **drawing._asdict(), **scores, "latents": strongest}


def _work(tasks: Sequence[Task], knobs: Tasks, seeds: Sequence[int]) -> Iterator[tuple[Task, int, Drawing]]:
    """Yield each task with each seed and each drawing of each regime."""
    for task in tasks:
        for regime in knobs.regimes:
            for drawing in drawings(regime, np.array(task.targets), len(task.ood_targets)):
                yield from ((task, seed, drawing) for seed in seeds)


def _prompts(task: Task, drawing: Drawing) -> list[int]:
    """Return the prompts that take part in a drawing: the task's own, and with the regime ood the others behind."""
    return [*task.prompts, *task.ood_prompts] if drawing.regime == "ood" else task.prompts


def _together(results: Mapping[str, ByTask]) -> ByTask:
    """Put what was probed of each task, seed and drawing into one row, so that dictionaries can be compared by task."""
    rows = []
    for same in zip(*results.values(), strict=True):
        by_name = dict(zip(results, same, strict=True))
        facts = {key: same[0][key] for key in ("task", "seed", *Drawing._fields)}
        scores = {
            metric: {
                pooling: {name: row[metric][pooling] for name, row in by_name.items()} for pooling in same[0][metric]
            }
            for metric in METRICS
        }
        rows.append({**facts, **scores, "latents": by_name[OWN]["latents"]})
    return rows


def _summary(
    results: Mapping[str, ByTask], own: Sequence[str], regime: str, knobs: Tasks, random: np.random.Generator
) -> dict[str, Any]:
    """Average over the tasks of a ``regime``: pooling -> what :func:`_of_pooling` says."""
    in_regime = {name: [row for row in rows if row["regime"] == regime] for name, rows in results.items()}
    if not in_regime[OWN]:
        lacking = "of another kind" if regime == "ood" else "enough for it"
        return {"why": f"no task has prompts {lacking}"}
    return {pooling: _of_pooling(in_regime, own, pooling, int(random.integers(2**32))) for pooling in knobs.pooling}


def _of_pooling(results: Mapping[str, ByTask], own: Sequence[str], pooling: Pooling, draws: int) -> dict[str, Any]:
    """Average over tasks: the SAE, its controls, and by how much it is above each of them.

    The interval of each number is a bootstrap over tasks; splits and drawings of a task are averaged first. ``draws``:
    the seed of the bootstrap, so that all names get the same draws, and a margin's interval is that of pairs. ``own``:
    the names of the SAE in all its trainings. Where there are several, `seeds` has the mean over all of them, and it is
    that which stands above the controls; these intervals are a bootstrap over tasks and seeds.
    """
    tasks = list(dict.fromkeys(row["task"] for row in results[OWN]))
    ks = list(results[OWN][0]["auc"][pooling])

    def scores(names: Sequence[str], metric: str) -> NDArray[np.float64]:
        """Return the score of each dictionary of ``names`` in each task for each number of latents, (name, task, k)."""
        return np.array([
            [np.mean([list(row[metric][pooling].values()) for row in results[name] if row["task"] == task], axis=0)
             for task in tasks]
            for name in names
        ])  # fmt: skip

    def measures(values: NDArray[np.float64]) -> dict[str, Any]:
        """Give the mean over names and tasks of ``values`` (name, task, k) its interval, for each k."""
        drawn = drawn_over_both(values, np.random.default_rng(draws))
        return {k: resampled(float(values[..., n].mean()), drawn[:, n]) for n, k in enumerate(ks)}

    alone = {name: {metric: measures(scores([name], metric)) for metric in METRICS} for name in results}
    controls = [name for name in results if name not in own]
    return {
        OWN: alone[OWN],
        **({"seeds": {metric: measures(scores(own, metric)) for metric in METRICS}} if len(own) > 1 else {}),
        "controls": {name: alone[name] for name in controls},
        "above": {name: measures(scores(own, "auc") - scores([name], "auc")) for name in controls},
    }
