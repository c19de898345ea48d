"""Read what the stage controls wrote of a layer: ``<L>.json``, its twins' measurements, and the twins' SAEs."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from strata.run.files import read_json, read_meta
from strata.run.params import check
from strata.verdict.targets import Margin

Measured = dict[str, float | None]  # metric -> value; None where the metric does not apply


class Record(BaseModel):
    """A part of ``<L>.json``: typed and frozen."""

    model_config = ConfigDict(frozen=True, strict=True)


class Checkpoint(Record):
    """The checkpoint of a twin that was kept: its step, and its validation score."""

    step: int
    score: float


class TwinResult(Record):
    """One twin, judged on the test split. ``weights`` is a fingerprint.

    ``margin``: metric -> by how much the SAE beats the twin; it lacks the metrics that do not apply.
    """

    test: Measured
    margin: dict[str, Margin]
    best: Checkpoint
    weights: str


class Twins(Record):
    """The twins of one layer's SAE, and twin -> why it was left out."""

    layer: int
    twins: dict[str, TwinResult]
    left_out: dict[str, str]

    def numbers(self) -> dict[str, Any]:
        """Return what the summary says of the twins: of each its metrics, and by how much the SAE beats it."""
        return {
            name: {**twin.test, "margin": {metric: margin.value for metric, margin in twin.margin.items()}}
            for name, twin in self.twins.items()
        }


def read_twins(path: Path) -> Twins | None:
    """Read ``<L>.json``. Return None if the stage was skipped. Raises BadInput where the file has another shape."""
    numbers = read_json(path)
    return None if numbers.get("skipped") else check(numbers, Twins, str(path))


def twin_folders(folder: Path) -> dict[str, Path]:
    """List the folders of the twins' SAEs in ``folder`` by name; there are none if the stage was skipped."""
    meta = read_json(folder / "meta.json")
    names = [] if meta.get("skipped") else read_meta(folder / "meta.json", {"twins": list}, "controls")["twins"]
    return {name: folder / name for name in names}
