"""Read experiments as points: how sparse an SAE is, and what that costs."""

import csv
import io
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

from strata.auto import AUTO
from strata.experiments.experiment import flat
from strata.run.door import BadInput

COSTS = ("fvu_inlier", "delta_ce")  # lower is better, as for l0
ALONG = ("train.k", "train.l1_coefficient", "train.activity_cost")  # what moves an SAE along its curve
SEED = "seed"  # experiments that differ in this alone are one point
NEAR = 0.02  # SAEs whose l0 differs by a smaller share count as equally sparse
TRAINED_ON = ("seed", "fetch", "extract", "tune", "train", "by_layer")  # sections that an SAE depends on
UNUSED = ("running", "queued", "failed")  # states of experiments without numbers of their own
SUMMARY = "reports/summary.json"


@dataclass(frozen=True)
class Point:
    """One SAE of an experiment, or the mean of those that differ in their seed alone.

    ``knobs``: the params that differ among the experiments. ``curve``: the name of the curve that it is on. ``costs``:
    name of COSTS -> value; None where there is no language model. ``bounds``: name of COSTS -> the smallest and the
    largest value of the seeds; empty where there is one seed.
    """

    experiment: str
    layer: int
    knobs: dict[str, str]
    curve: str
    l0: float
    costs: dict[str, float | None]
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)


class Run(NamedTuple):
    """A finished run as `dvc exp show` lists it. ``sweep``: it is an experiment, not the commit's own run."""

    name: str
    files: Mapping[str, Any]
    sweep: bool


def shortest(name: str) -> str:
    """Shorten a param's name: ``train.latents`` -> ``latents``. Other sections keep their name."""
    return name.removeprefix("train.")


def read_points(shown: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return a point for each layer of each finished run, ordered by layer, curve and l0.

    The run of the commit itself, which one compares with, is a point of its own. ``shown``: what `dvc exp show --json`
    printed. Raises BadInput where no experiment is finished.
    """
    runs = list(_runs(shown))
    if not any(run.sweep for run in runs):
        raise BadInput(
            "no experiment of this commit is finished; queue some (`dvc exp run --queue -S train.k=32,64`), "
            "then `dvc queue start`"
        )

    # A point carries only the knobs in which the runs differ, a curve only those in which the experiments do.
    params = [_params(run.files["params"], run.files["metrics"]) for run in runs]
    names = [name for name in _differing(params) if name != SEED]
    of_curve = [
        name
        for name in _differing([knobs for run, knobs in zip(runs, params, strict=True) if run.sweep])
        if name not in (SEED, *ALONG)
    ]

    points = []
    for run, knobs in zip(runs, params, strict=True):
        shared = ", ".join(f"{shortest(name)} {knobs.get(name, '–')}" for name in of_curve) or "all"
        curve = shared if run.sweep else f"{run.name} (this commit)"
        points += _points(run, {name: knobs.get(name, "–") for name in names}, curve)
    return sorted(_over_seeds(points), key=lambda point: (point.layer, point.curve, point.l0))


def _runs(shown: Sequence[Mapping[str, Any]]) -> Iterator[Run]:
    """Yield the finished experiments, and the runs of the commits that they start from."""
    for baseline in shown:
        own = baseline.get("data") or {}
        if baseline.get("rev") != "workspace" and (own.get("metrics") or {}).get(SUMMARY):
            yield Run(baseline.get("name") or baseline["rev"][:7], own, False)
        for experiment in baseline.get("experiments") or []:
            state = (experiment.get("executor") or {}).get("state")
            data = experiment["revs"][0].get("data") or {}
            if state not in UNUSED and data.get("metrics"):
                yield Run(experiment["name"], data, True)


def _differing(params: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names of params that have two values or more, in their order."""
    names = dict.fromkeys(name for knobs in params for name in knobs)
    return [name for name in names if len({knobs.get(name) for knobs in params}) > 1]


def _params(files: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the params that an SAE depends on. For an `auto`, return what it became for the first layer."""
    values = files["params.yaml"]["data"]
    params = flat({section: values[section] for section in TRAINED_ON if section in values})
    summary = (metrics.get(SUMMARY) or {}).get("data") or {}

    for name in [name for name, value in params.items() if value == AUTO]:
        of_layers = (key for key in summary if key.split(".")[::2] == name.split("."))  # train.k: train.9.k
        params[name] = str(summary.get(next(of_layers, name), AUTO))
    return params


def _points(run: Run, knobs: dict[str, str], curve: str) -> Iterator[Point]:
    """Yield a point for each layer in a run's summary."""
    values = (run.files["metrics"].get(SUMMARY) or {}).get("data") or {}
    for key, l0 in values.items():
        stage, _, rest = key.partition(".")
        layer, _, metric = rest.partition(".")
        if stage == "train" and metric == "l0" and l0 is not None:
            costs = {name: values.get(f"train.{layer}.{name}") for name in COSTS}
            yield Point(run.name, int(layer), knobs, curve, l0, costs)


def _over_seeds(points: Iterable[Point]) -> Iterator[Point]:
    """Yield one point for those of the same layer, curve and knobs: their mean, and how far they are spread."""
    groups: dict[Hashable, list[Point]] = {}
    for point in points:
        groups.setdefault((point.layer, point.curve, *point.knobs.items()), []).append(point)

    for group in groups.values():
        known = {cost: [value for point in group if (value := point.costs[cost]) is not None] for cost in COSTS}
        yield replace(
            group[0],
            experiment=", ".join(point.experiment for point in group),
            l0=fmean(point.l0 for point in group),
            costs={cost: fmean(values) if values else None for cost, values in known.items()},
            bounds={cost: (min(values), max(values)) for cost, values in known.items() if len(values) > 1},
        )


def front(points: Iterable[Point], cost: str) -> list[Point]:
    """Return the points that no other point beats, by rising l0.

    A point beats another if it costs less and is as sparse, up to NEAR, or if it costs the same and is sparser.
    """
    known = [(point, value) for point in points if (value := point.costs[cost]) is not None]
    unbeaten = [
        point
        for point, value in known
        if not any(
            (price < value and other.l0 <= point.l0 * (1 + NEAR)) or (price == value and other.l0 < point.l0)
            for other, price in known
        )
    ]
    return sorted(unbeaten, key=lambda point: point.l0)


def by_layer(points: Iterable[Point]) -> dict[int, list[Point]]:
    """Return layer -> its points, in their order."""
    points_of: dict[int, list[Point]] = {}
    for point in points:
        points_of.setdefault(point.layer, []).append(point)
    return points_of


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return a line for each point: experiment, layer, knobs, l0, costs, the bounds of these where there are several
    seeds, and whether it is on each cost's front."""
    fronts = {
        (layer, cost): {id(point) for point in front(of_layer, cost)}
        for layer, of_layer in by_layer(points).items()
        for cost in COSTS
    }
    spread = [cost for cost in COSTS if any(cost in point.bounds for point in points)]  # of several seeds

    lines = []
    for point in points:
        line = {"experiment": point.experiment, "layer": point.layer, **point.knobs, "l0": point.l0, **point.costs}
        for cost in spread:
            line[f"{cost}_low"], line[f"{cost}_high"] = point.bounds.get(cost, (None, None))
        for cost in COSTS:
            line[f"front_{cost}"] = int(id(point) in fronts[point.layer, cost])
        lines.append(line)
    return lines


def table(points: Sequence[Point]) -> str:
    """Write the lines of :func:`rows` as CSV."""
    text = io.StringIO()
    lines = rows(points)
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def parse(text: str) -> list[dict[str, Any]]:
    """Parse what `dvc exp show --json` printed. Raises BadInput where it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        raise BadInput("`dvc exp show --json` did not print JSON; try it by hand") from None
