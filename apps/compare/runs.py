"""Compare experiments or commits by the numbers that their runs left.

Another seed also splits the documents anew. So the difference of one seed holds a training's luck and a split's luck,
and the spread over seeds is that of both. Runs of the same seed have the same split, which is why they are paired.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.compare.comparison import Comparison
from apps.compare.history import History, Run, cache_folder, cached, differing
from strata.comparison import paired, words
from strata.comparison.paired import Metric, Side
from strata.run.door import BadInput

# Numbers of the summary that are worth a verdict -> whether lower is better. Others say the same again (mse, fvu,
# cosine, kl, ce_recovered), nothing about the SAE (ce_clean), or are shares of a handful of latents (steer_eval).
JUDGED = {
    r"train\.\d+\.fvu_inlier": True,
    r"train\.\d+\.l0": True,
    r"train\.\d+\.dead": True,
    r"train\.\d+\.delta_ce": True,
    r"evaluate\.\d+\.probing\.sae\.[15]": False,
    r"evaluate\.\d+\.tasks\.normal\.(last|mean)\.sae\.auc\.[15]": False,
    r"stability\.\d+\.again": False,
    r"evaluate\.\d+\.absorption\.absorbed": True,
    r"evaluate\.\d+\.letters\.absorbed": True,
    r"interpret\.\d+\.rule\.balanced_accuracy\.difference": False,
}
STAGES = ("train", "evaluate", "stability", "interpret")  # whose numbers these are
SAME = ("fetch", "extract")  # sections that say what an SAE is judged on,
SAME_ROWS = ("extract.batch_size", "extract.shard_rows", "extract.layers")  # apart from these


@dataclass(frozen=True)
class Group:
    """The runs of one side, by seed."""

    name: str
    runs: Sequence[Run]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def only(self, seeds: set[int]) -> "Group":
        """Restrict to some seeds."""
        return Group(self.name, [run for run in self.runs if run.seed in seeds])


def compare(a: str, b: str, layer: int | None = None) -> Comparison:
    """Compare two words of the command line, each of which names a run, or several with commas between them.

    A single run is joined by those that differ from it in their seed alone. ``layer``: the one to compare; None: all
    that both sides have. Raises BadInput where the runs are not there or not finished, or are judged on different
    models or texts.
    """
    history = History()
    of_a, of_b = (_group(history, word, side) for word, side in ((a, "A"), (b, "B")))
    if shared := {run.commit for run in of_a.runs} & {run.commit for run in of_b.runs}:
        names = " and ".join(dict.fromkeys(run.name for run in (*of_a.runs, *of_b.runs) if run.commit in shared))
        raise BadInput(
            f"A and B both have {names}: they differ in nothing but the seed; name the runs of each side, with commas "
            "between them, to compare two groups of one configuration"
        )
    _check_judged_alike(of_a.runs[0], of_b.runs[0])

    notes = []
    remedy = words.remedy(len(of_a.runs), len(of_b.runs), f"with `-S seed={_next_seed(of_a, of_b)}`")
    common = set(of_a.seeds) & set(of_b.seeds)
    if common and set(of_a.seeds) != set(of_b.seeds) and (len(common) > 1 or min(len(of_a.seeds), len(of_b.seeds)) < 2):
        left = sorted((set(of_a.seeds) | set(of_b.seeds)) - common)
        notes.append(f"Only one side has seed {', '.join(map(str, left))}: that was left out.")
        of_a, of_b = of_a.only(common), of_b.only(common)
    for seed in sorted(common):
        _check_same_text(*(next(run for run in group.runs if run.seed == seed) for group in (of_a, of_b)))

    metrics, more_notes = _metrics(of_a, of_b, layer)
    return Comparison(
        a=a,
        b=b,
        members_a=_names(of_a),
        members_b=_names(of_b),
        remedy=remedy,
        scope="the held-out documents of each run; another seed also splits the documents anew",
        notes=[*notes, *more_notes],
        rows=paired.compare(metrics),
    )


def _next_seed(a: Group, b: Group) -> int:
    """Return the seed that the side with fewer runs should have next: one of the other side, which makes a pair."""
    fewer, other = sorted((a, b), key=lambda group: len(group.runs))
    missing = sorted(set(other.seeds) - set(fewer.seeds))
    return missing[0] if missing else next(seed for seed in range(10**6) if seed not in fewer.seeds)


def _names(group: Group) -> list[str]:
    """Name each run with its seed."""
    return [f"{run.name} (seed {run.seed})" for run in group.runs]


def _group(history: History, word: str, side: str) -> Group:
    """Return the runs that a word names."""
    if "," not in word:
        return Group(word, history.like(history.find(word), STAGES))
    runs = [history.find(name) for name in word.split(",")]
    for place, run in enumerate(runs):
        if other := differing(runs[0], run):
            raise BadInput(f"{side}: {runs[0].name} and {run.name} differ in {other[0]}, not in their seed alone")
        if run.code(STAGES) != runs[0].code(STAGES):
            raise BadInput(f"{side}: {runs[0].name} and {run.name} were made by different code")
        if twin := next((other for other in runs[:place] if other.seed == run.seed), None):
            raise BadInput(f"{side}: {twin.name} and {run.name} have the same seed, {run.seed}")
    return Group(word, sorted(runs, key=lambda run: run.seed))


def _check_judged_alike(a: Run, b: Run) -> None:
    """Refuse runs on other models, texts or rows, by their params."""
    for name in differing(a, b):
        if name.partition(".")[0] in SAME and name not in SAME_ROWS:
            values = " and ".join(f"{run.knobs.get(name, 'nothing')} in {run.name}" for run in (a, b))
            raise BadInput(f"A and B are not judged on the same rows: {name} is {values}")
    if a.made("data/lm") != b.made("data/lm"):
        raise BadInput(f"A and B are of different models: {a.name} and {b.name} have another data/lm")


def _check_same_text(a: Run, b: Run) -> None:
    """Refuse runs of one seed whose text differs."""
    if a.made("data/corpus") != b.made("data/corpus"):
        raise BadInput(f"A and B are of different texts: {a.name} and {b.name} have another data/corpus")


def _metrics(a: Group, b: Group, layer: int | None) -> tuple[list[Metric], list[str]]:
    """Return every number that is worth a verdict and that all runs have, and what was left out."""
    runs, notes = [*a.runs, *b.runs], []
    layers = [{name.split(".")[1] for name in group.runs[0].summary if name.startswith("train.")} for group in (a, b)]
    wanted = layers[0] & layers[1] & ({str(layer)} if layer is not None else layers[0])
    of_a, of_b = (", ".join(sorted(numbers, key=int)) for numbers in layers)
    if not layers[0] & layers[1]:
        raise BadInput(f"A has layer {of_a} and B layer {of_b}: two layers cannot be compared")
    if not wanted:
        raise BadInput(f"layer {layer} is not in both A ({of_a}) and B ({of_b})")
    if layer is None and (alone := sorted(layers[0] ^ layers[1], key=int)):
        notes.append(f"Only one side has layer {', '.join(alone)}: it was left out.")

    # A number that was measured in another way does not count.
    differ = differing(a.runs[0], b.runs[0])
    changed = {name.partition(".")[0]: name for name in differ if name.partition(".")[0] in STAGES[1:]}
    if "train.ce_tokens" in differ:
        changed["delta_ce"] = "train.ce_tokens"
    for what, name in changed.items():
        notes.append(f"{what} was left out: {name} differs, so that it was not measured alike.")

    code_a, code_b = (group.runs[0].code(STAGES) for group in (a, b))
    if other := sorted(path for path in {**code_a, **code_b} if code_a.get(path) != code_b.get(path)):
        notes.append(f"A and B ran different code ({words.listed(other)}): a difference may be of how it was measured.")

    names = [name for pattern in JUDGED for name in runs[0].summary if re.fullmatch(pattern, name)]
    names = [
        name
        for name in names
        if name.split(".")[1] in wanted
        if name.partition(".")[0] not in changed and name.rpartition(".")[2] not in changed
        if all(_is_number(run.summary.get(name)) for run in runs)
    ]
    tasks = _tasks(runs, [name for name in names if _by_task(name, None) is not None])
    return [_metric(name, a, b, tasks.get(name)) for name in _in_order(names)], notes


def _in_order(names: Sequence[str]) -> list[str]:
    """Sort metrics by layer; those of a layer stay in the order of JUDGED."""
    return sorted(names, key=lambda name: int(name.split(".")[1]))


def _is_number(value: Any) -> bool:
    """Say whether a value of the summary is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _metric(name: str, a: Group, b: Group, tasks: dict[str, dict[str, float]] | None) -> Metric:
    """Return a metric of both groups: by task where the numbers of tasks are known, else of each run as a whole."""
    lower = next(lower for pattern, lower in JUDGED.items() if re.fullmatch(pattern, name))

    def side(group: Group) -> Side:
        if tasks is None:
            sums = np.array([[run.summary[name]] for run in group.runs], np.float64)
            return Side(sums, np.ones(1), group.seeds)
        common = sorted(set.intersection(*(set(values) for values in tasks.values())))
        sums = np.array([[tasks[run.commit][task] for task in common] for run in group.runs])
        return Side(sums, np.ones(len(common)), group.seeds)

    # The share of dead latents counts latents: it comes in steps of one.
    step = 0.0
    if name.endswith(".dead"):
        sizes = [run.summary.get(f"{name.removesuffix('dead')}latents") for run in (*a.runs, *b.runs)]
        step = max((1 / size for size in sizes if size), default=0.0)
    return Metric(name, lower, side(a), side(b), None if tasks is None else "tasks", step)


def _tasks(runs: Sequence[Run], names: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return metric -> commit -> task -> value, where DVC's cache has the reports of all runs, and they share tasks."""
    cache = cache_folder() if names else None
    if cache is None:
        return {}
    by_metric = {}
    for name in names:
        path = f"reports/evaluate/{name.split('.')[1]}.json"
        reports = {run.commit: cached(run.made(path), cache) for run in runs}
        values = {commit: _by_task(name, report) or {} for commit, report in reports.items()}
        if all(values.values()) and len(set.intersection(*(set(tasks) for tasks in values.values()))) > 1:
            by_metric[name] = values
    return by_metric


def _by_task(metric: str, report: Any) -> dict[str, float] | None:
    """Return task -> value of ``metric`` from ``report``, the content of `reports/evaluate/<L>.json` or nothing.

    A label of probing is a task, too. None for a metric that is not of tasks.
    """
    report = report or {}
    if metric.endswith(".probing.sae.1"):
        labels = (report.get("probing") or {}).get("labels") or []
        return {label["label"]: label["accuracy"]["value"] for label in labels}

    if not (parts := re.search(r"\.tasks\.normal\.(last|mean)\.sae\.auc\.(\d+)$", metric)):
        return None
    pooling, k = parts.groups()
    by_task: dict[str, list[float]] = {}  # a task has a row for each seed of its split
    for row in (report.get("tasks") or {}).get("by_task") or []:
        if row["regime"] == "normal":
            by_task.setdefault(row["task"], []).append(row["auc"][pooling]["sae"][k])
    return {task: float(np.mean(values)) for task, values in by_task.items()}
