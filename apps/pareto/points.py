"""Read experiments as points: how sparse an SAE is, and what that costs."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strata.auto import AUTO
from strata.experiments.experiment import flat
from strata.run.door import BadInput

COSTS = ("fvu_inlier", "delta_ce")  # lower is better, as for l0
ALONG = ("train.k", "train.l1_coefficient", "train.activity_cost")  # what moves an SAE along its curve
TRAINED_ON = ("seed", "fetch", "extract", "tune", "train", "by_layer")  # sections that an SAE depends on
UNUSED = ("running", "queued", "failed")  # states of experiments without numbers of their own
SUMMARY = "reports/summary.json"


@dataclass(frozen=True)
class Point:
    """One SAE of an experiment.

    ``knobs``: the params that differ among the experiments. ``costs``: name of COSTS -> value; None where there is no
    language model.
    """

    experiment: str
    layer: int
    knobs: dict[str, str]
    l0: float
    costs: dict[str, float | None]

    @property
    def curve(self) -> str:
        """The knobs that the points of a curve share, in words: all but those ALONG the curve."""
        shared = [f"{shortest(name)} {value}" for name, value in self.knobs.items() if name not in ALONG]
        return ", ".join(shared) or "all"


def shortest(name: str) -> str:
    """Shorten a param's name: ``train.latents`` -> ``latents``. Other sections keep their name."""
    return name.removeprefix("train.")


def read_points(shown: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return a point for each layer of each finished experiment, ordered by layer, curve and l0.

    ``shown``: what `dvc exp show --json` printed. Raises BadInput where no experiment is finished.
    """
    finished = [
        (experiment["name"], experiment["revs"][0]["data"])
        for baseline in shown
        for experiment in baseline.get("experiments") or []
        if _is_finished(experiment)
    ]

    # A point carries only the knobs in which the experiments differ.
    params = [_params(data["params"], data["metrics"]) for _, data in finished]
    names = dict.fromkeys(name for knobs in params for name in knobs)
    differing = [name for name in names if len({knobs.get(name) for knobs in params}) > 1]

    points = [
        point
        for (name, data), knobs in zip(finished, params, strict=True)
        for point in _points(name, data["metrics"], {key: knobs.get(key, "–") for key in differing})
    ]
    if not points:
        raise BadInput(
            "no experiment of this commit is finished; queue some (`dvc exp run --queue -S train.k=32,64`), "
            "then `dvc queue start`"
        )
    return sorted(points, key=lambda point: (point.layer, point.curve, point.l0))


def _is_finished(experiment: Mapping[str, Any]) -> bool:
    """Tell whether an experiment has numbers of its own."""
    state = (experiment.get("executor") or {}).get("state")
    return state not in UNUSED and bool((experiment["revs"][0].get("data") or {}).get("metrics"))


def _params(files: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the params that an SAE depends on. For an `auto`, return what it became for the first layer."""
    values = files["params.yaml"]["data"]
    params = flat({section: values[section] for section in TRAINED_ON if section in values})
    summary = (metrics.get(SUMMARY) or {}).get("data") or {}

    for name in [name for name, value in params.items() if value == AUTO]:
        of_layers = (key for key in summary if key.split(".")[::2] == name.split("."))  # train.k: train.9.k
        params[name] = str(summary.get(next(of_layers, name), AUTO))
    return params


def _points(experiment: str, files: Mapping[str, Any], knobs: dict[str, str]) -> Iterable[Point]:
    """Yield a point for each layer in an experiment's summary."""
    values = (files.get(SUMMARY) or {}).get("data") or {}
    for key, l0 in values.items():
        stage, _, rest = key.partition(".")
        layer, _, metric = rest.partition(".")
        if stage == "train" and metric == "l0" and l0 is not None:
            costs = {name: values.get(f"train.{layer}.{name}") for name in COSTS}
            yield Point(experiment, int(layer), knobs, l0, costs)


def front(points: Iterable[Point], cost: str) -> list[Point]:
    """Return the points that no other point beats, by rising l0.

    A point beats another if it has no more active latents and no higher cost, and less of one of the two.
    """
    unbeaten: list[Point] = []
    lowest_cost = float("inf")
    for point in sorted(points, key=lambda point: (point.l0, _cost(point, cost))):
        if _cost(point, cost) < lowest_cost:
            lowest_cost = _cost(point, cost)
            unbeaten.append(point)
    return unbeaten


def _cost(point: Point, cost: str) -> float:
    """Return a cost; infinity where it is not known."""
    value = point.costs[cost]
    return float("inf") if value is None else value


def by_layer(points: Iterable[Point]) -> dict[int, list[Point]]:
    """Return layer -> its points, in their order."""
    points_of: dict[int, list[Point]] = {}
    for point in points:
        points_of.setdefault(point.layer, []).append(point)
    return points_of


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return a line for each point: experiment, layer, knobs, l0, costs, and whether it is on each cost's front."""
    fronts = {
        (layer, cost): {id(point) for point in front(of_layer, cost)}
        for layer, of_layer in by_layer(points).items()
        for cost in COSTS
    }
    return [
        {
            "experiment": point.experiment,
            "layer": point.layer,
            **point.knobs,
            "l0": point.l0,
            **point.costs,
            **{f"front_{cost}": int(id(point) in fronts[point.layer, cost]) for cost in COSTS},
        }
        for point in points
    ]


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
