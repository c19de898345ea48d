"""What train writes of a layer: ``<L>.json``, its measurements, and ``<L>.csv``, the history of its training."""

import csv
import io
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from strata.rows.size import Size
from strata.run.door import BadInput
from strata.run.files import check_hashes, read_json, read_meta
from strata.run.params import check

Measured = dict[str, float | None]  # metric -> value; None where the metric does not apply
COLUMNS: tuple[str, ...] = (
    "step",
    "tokens",
    "lr",
    "loss",
    "mse",
    "fvu",
    "l0",
    "dead",
    "validation_fvu",
    "validation_l0",
    "validation_dead",
    "score",
)
History = list[dict[str, float]]  # a row a logging point: column -> value


class Record(BaseModel):
    """A part of a stage's file: typed and frozen. The file may hold more keys, which the record leaves out."""

    model_config = ConfigDict(frozen=True, strict=True)


class Model(Record):
    """Where the activations come from."""

    name: str
    revision: str | None
    fingerprint: str
    hook: str
    width: int


class TokenCount(Record):
    """How many outlier rows stand on one token."""

    token: str
    count: int


class Outliers(Record):
    """Rows whose norm is over 3 × the layer's median."""

    rows: int
    share_of_rows: float
    share_of_variance: float
    tokens: list[TokenCount]


class Density(Record):
    """Histogram of log10 of the share of tokens on which a latent fires; dead latents are not in it."""

    log10_edges: list[float]
    counts: list[int]


class Best(Record):
    """The checkpoint that was kept: its step, and its constrained validation score."""

    step: int
    score: float


class Result(Record):
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
    rows: dict[str, int]  # split -> how many rows it has
    test: Measured
    controls: dict[str, Measured]
    outliers: Outliers
    density: Density
    best: Best | None  # None: the SAE was given, not trained
    unread: dict[str, int] | None = None  # what a sentence model cannot read of long texts: texts, total, most, tokens

    @property
    def size(self) -> Size:
        """What the SAE was trained on."""
        return Size(self.model.hook, self.rows["train"], self.model.width)


def read_result(path: Path) -> Result:
    """Read ``<L>.json``. Raises BadInput, which names the key, where the file has another shape."""
    return check(read_json(path), Result, str(path))


def read_history(path: Path) -> History:
    """Read ``<L>.csv``, a row a logging point. A row leaves out what was not measured at its point.

    ``<L>.json`` beside it holds the file's hash. Raises BadInput where the hash differs, or a cell is no number.
    """
    curve = read_meta(path.with_suffix(".json"), {"curve": str}, "train")["curve"]
    check_hashes(path.parent, [{"file": path.name, "sha256": curve}], "train")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path} is not a table of numbers: {error}") from None


def history_csv(history: list[dict[str, Any]]) -> str:
    """Write the history as CSV. The validation columns are empty for steps without a validation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
