"""Experiments -> points: how sparse an SAE is, and what that costs."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strata.auto import AUTO
from strata.experiments.experiment import flat
from strata.run.door import BadInput

COSTS = ("fvu_inlier", "delta_ce")  # the lower, the better, like l0
ALONG = ("train.k", "train.l1_coefficient", "train.activity_cost")  # what moves an SAE along its curve
TRAINED_ON = ("seed", "fetch", "extract", "tune", "train", "by_layer")  # sections that an SAE depends on
UNUSED = ("running", "queued", "failed")  # states of experiments without numbers of their own
SUMMARY = "reports/summary.json"


@dataclass(frozen=True)
class Point:
    """One SAE of an experiment. ``knobs``: params that differ among the experiments, ``curve`` those of them that
    make it another curve. ``costs``: COSTS by name; None where there is no language model."""

    experiment: str
    layer: int
    knobs: dict[str, str]
    l0: float
    costs: dict[str, float | None]

    @property
    def curve(self) -> str:
        """What it shares with the other points of its curve, in words."""
        shared = [f"{shortest(name)} {value}" for name, value in self.knobs.items() if name not in ALONG]
        return ", ".join(shared) or "all"


def shortest(name: str) -> str:
    """train.latents -> latents; other sections keep their name."""
    return name.removeprefix("train.")


def read_points(shown: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The points of what `dvc exp show --json` printed: of each layer of each finished experiment, ordered by layer,
    curve and l0. BadInput where there are none."""
    finished = [
        (one["name"], one["revs"][0]["data"])
        for baseline in shown
        for one in baseline.get("experiments") or []
        if (one.get("executor") or {}).get("state") not in UNUSED and (one["revs"][0].get("data") or {}).get("metrics")
    ]
    params = [_params(data["params"], data["metrics"]) for _, data in finished]
    differing = [
        name
        for name in dict.fromkeys(name for one in params for name in one)
        if len({one.get(name) for one in params}) > 1
    ]
    found = [
        point
        for (name, data), knobs in zip(finished, params, strict=True)
        for point in _points(name, data["metrics"], {key: knobs.get(key, "–") for key in differing})
    ]
    if not found:
        raise BadInput(
            "no experiment of this commit is finished; queue some (`dvc exp run --queue -S train.k=32,64`), "
            "then `dvc queue start`"
        )
    return sorted(found, key=lambda point: (point.layer, point.curve, point.l0))


def _params(files: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, str]:
    """The params that an SAE depends on; of what is auto, what it became for the first layer."""
    values = files["params.yaml"]["data"]
    found = flat({section: values[section] for section in TRAINED_ON if section in values})
    summary = (metrics.get(SUMMARY) or {}).get("data") or {}
    for name in [name for name, value in found.items() if value == AUTO]:
        became = (key for key in summary if key.split(".")[::2] == name.split("."))  # train.k: train.9.k
        found[name] = str(summary.get(next(became, name), AUTO))
    return found


def _points(experiment: str, files: Mapping[str, Any], knobs: dict[str, str]) -> Iterable[Point]:
    values = (files.get(SUMMARY) or {}).get("data") or {}
    for key, l0 in values.items():
        stage, _, rest = key.partition(".")
        layer, _, metric = rest.partition(".")
        if stage == "train" and metric == "l0" and l0 is not None:
            costs = {name: values.get(f"train.{layer}.{name}") for name in COSTS}
            yield Point(experiment, int(layer), knobs, l0, costs)


def front(points: Iterable[Point], cost: str) -> list[Point]:
    """Those that no other one beats: with as few active latents and as low a cost, and less of one. By rising l0."""
    found: list[Point] = []
    least = float("inf")
    for point in sorted(points, key=lambda point: (point.l0, _known(point, cost))):
        if _known(point, cost) < least:
            least = _known(point, cost)
            found.append(point)
    return found


def _known(point: Point, cost: str) -> float:
    value = point.costs[cost]
    return float("inf") if value is None else value


def by_layer(points: Iterable[Point]) -> dict[int, list[Point]]:
    found: dict[int, list[Point]] = {}
    for point in points:
        found.setdefault(point.layer, []).append(point)
    return found


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A line a point: experiment, layer, what differs, l0, costs, and whether it is on the front of each."""
    fronts = {
        (layer, cost): {id(point) for point in front(some, cost)}
        for layer, some in by_layer(points).items()
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
    """The same as CSV."""
    text = io.StringIO()
    lines = rows(points)
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def parse(text: str) -> list[dict[str, Any]]:
    """What `dvc exp show --json` printed."""
    try:
        return json.loads(text)
    except ValueError:
        raise BadInput("`dvc exp show --json` did not print JSON; try it by hand") from None
