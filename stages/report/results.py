"""Read what train wrote for a layer, ``<L>.json`` (measurements) and ``<L>.csv`` (history), and what later stages
measured."""

import csv
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from strata.auto import Size
from strata.run.door import BadInput
from strata.run.files import check_hashes, read_json, read_meta
from strata.run.params import check

Measured = dict[str, float | None]
History = list[dict[str, float]]


class _Part(BaseModel):
    """Typed and frozen; keys that the report does not use may be there too."""

    model_config = ConfigDict(frozen=True, strict=True)


class Model(_Part):
    """Where the activations come from."""

    name: str
    revision: str | None
    fingerprint: str
    hook: str
    width: int


class TokenCount(_Part):
    """How many outlier rows stand on one token."""

    token: str
    count: int


class Outliers(_Part):
    """Rows whose norm is over 3 × the layer's median."""

    rows: int
    share_of_rows: float
    share_of_variance: float
    tokens: list[TokenCount]


class Density(_Part):
    """Histogram of log10 of the share of tokens on which a latent fires; dead latents are not in it."""

    log10_edges: list[float]
    counts: list[int]


class Best(_Part):
    """The checkpoint that was kept: its step, and its constrained validation score."""

    step: int
    score: float


class Result(_Part):
    """One layer: its SAE and the controls, judged on the test split. ``corpus``, ``weights`` and ``curve`` (the
    history) are fingerprints."""

    layer: int
    model: Model
    corpus: str
    weights: str
    curve: str
    rule: str
    latents: int
    k: int | None
    batch_size: int
    epochs: int
    rows: dict[str, int]
    test: Measured
    controls: dict[str, Measured]
    outliers: Outliers
    density: Density
    best: Best | None  # null: the SAE was given, not trained
    unread: dict[str, int] | None = None  # of a sentence model's texts, what is longer than it reads

    @property
    def size(self) -> Size:
        """What it was trained on."""
        return Size(self.model.hook, self.rows["train"], self.model.width)


def read_result(path: Path) -> Result:
    """Read ``<L>.json``."""
    return check(read_json(path), Result, str(path))


def read_numbers(path: Path) -> dict[str, Any] | None:
    """Read `reports/<stage>/<L>.json`: its numbers, nested; None if the stage was skipped."""
    found = read_json(path)
    return None if found.get("skipped") else found


class Point(_Part):
    """One dictionary of a line of the curve: merged, dropped or refitted."""

    line: str
    latents: int
    fvu: float


class Group(_Part):
    """A merged latent, and the latents that it is made of."""

    merged: int
    latents: list[int]


class Merged(_Part):
    """What merging did to a layer's dictionary: ``test`` says before, after and the baselines, dropped and refitted."""

    layer: int
    living: int
    merged: int
    alone: int
    largest: int
    dropped: int
    groups: list[Group]
    test: dict[str, Measured]
    curve: list[Point]

    def numbers(self) -> dict[str, Any]:
        """What the summary takes of it; ``before`` is train's."""
        counts = {"latents": self.merged, "alone": self.alone, "largest": self.largest, "dropped": self.dropped}
        return {"test": {name: self.test[name] for name in ("after", "dropped", "refitted")}, "groups": counts}


def read_merged(path: Path) -> Merged | None:
    """Read `reports/merge/<L>.json`; None if the stage was skipped."""
    found = read_json(path)
    return None if found.get("skipped") else check(found, Merged, str(path))


def read_history(path: Path) -> History:
    """Read ``<L>.csv``, whose fingerprint ``<L>.json`` holds: a row a logging point; what was not measured at a point
    is left out of its row."""
    curve = read_meta(path.with_suffix(".json"), {"curve": str}, "train")["curve"]
    check_hashes(path.parent, [{"file": path.name, "sha256": curve}], "train")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path} is not a table of numbers: {error}") from None
