"""Read what the pages show of a layer, and choose the latents that get a page."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stages.report.families import Families
from strata.interpretation.read import Latents
from strata.pages.readable import Row, explained

EACH = 3  # latents that are explained worst, of a layer
KINDS = ("top", "decile", "random", "near", "zero")  # of examples, in the order in which a page shows them


class Layer(NamedTuple):
    """What the pages show of one layer.

    ``statistics``: a row for each latent. ``ids``: the latents that have a page, the most interesting first. ``notes``:
    latent -> its best explanation. ``families``: those that cluster found; None: no map and no families are shown.
    """

    latents: Latents
    statistics: list[Row]
    ids: list[int]
    notes: dict[int, Row]
    families: Families | None

    @property
    def meta(self) -> Row:
        """What interpret's `meta.json` says."""
        return self.latents.meta

    @property
    def living(self) -> int:
        """How many latents are not dead."""
        return sum(not row["dead"] for row in self.statistics)


def read_layer(latents: Latents, pages: int, selected: Sequence[int] = (), families: Families | None = None) -> Layer:
    """Read a layer, and choose its pages: the ``pages`` most interesting latents, the ``selected``, those with a name
    that a person gave, and the worst.
    """
    statistics, notes = latents.statistics().to_pylist(), _notes(latents)
    asked = [*selected, *latents.names_by_people, *(worst(statistics, notes) if pages else [])]
    return Layer(latents, statistics, chosen(statistics, pages, asked), notes, families)


def chosen(statistics: Sequence[Row], pages: int, selected: Sequence[int] = ()) -> list[int]:
    """Return the latents that get a page, the most interesting first.

    They are ``pages`` living latents and those that a later stage ``selected``. Of latents that are equally interesting
    the important ones come first, and those that the filters kept before the others.
    """
    living = [row for row in statistics if not row["dead"]]
    best = {row["latent"] for row in sorted(living, key=rank)[:pages]}
    wanted = best | {latent for latent in selected if latent < len(statistics)}
    return sorted(wanted, key=lambda latent: rank(statistics[latent]))


def rank(row: Row) -> tuple[float, bool, float, int]:
    """Return the place of a latent in every list that shows the most interesting first; the lowest comes first."""
    return -row["interest"], not row["kept"], -row["importance"], row["latent"]


def worst(statistics: Sequence[Row], notes: Mapping[int, Row], each: int = EACH) -> list[int]:
    """Return the kept latents whose explanation scores worst; of equal scores the more important comes first.

    Only the score counts, not its distance from chance: a latent's chance is the score of one other latent's
    explanation, which may happen to fit. One without a score does not count.
    """
    scored = [
        (note["balanced_accuracy"], -row["importance"], row["latent"])
        for row in statistics
        if row["kept"] and (note := notes.get(row["latent"])) and note["balanced_accuracy"] is not None
    ]
    return [latent for _, _, latent in sorted(scored)[:each]]


def rows(latents: Latents, name: str, ids: Sequence[int]) -> dict[int, list[Row]]:
    """Return latent -> its rows of the table ``name``, in the table's order.

    Each of ``ids`` has an entry, which is empty where interpret wrote no such table.
    """
    table = latents.table(name, filters=[("latent", "in", list(ids))]) if ids else None
    rows_of: dict[int, list[Row]] = {latent: [] for latent in ids}
    for row in [] if table is None else table.to_pylist():
        rows_of[row["latent"]].append(row)
    return rows_of


def grouped(examples: Sequence[Row]) -> dict[str, list[Row]]:
    """Group examples by kind, the strongest first. All deciles are one kind; a kind without examples has no entry."""
    groups: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for row in examples:
        groups[row["kind"].partition("-")[0]].append(row)

    # The latent is silent on near misses, so those keep the order of their rank.
    return {
        kind: sorted(group, key=lambda row: (-tenth(row), -row["value"] * (kind != "near"), row["rank"]))
        for kind, group in groups.items()
        if group
    }


def tenth(row: Row) -> int:
    """Return the number of an example's decile, 10 is the strongest: ``decile-9`` -> 9; 0 for any other kind."""
    return int(row["kind"].partition("-")[2] or 0)


def _notes(latents: Latents) -> dict[int, Row]:
    """Return latent -> its best explanation."""
    table = latents.table("explanations")
    return {latent: rows[0] for latent, rows in explained(table.to_pylist() if table else []).items()}
