"""Open what interpret wrote, `data/latents/<L>/`. The stages that come later read it through this module.

`meta.json`                    what it was made from, and how many latents are dead, kept and dropped
`codes/shard-*.safetensors`    the sparse codes by latent: starts (latents + 1,), rows (entries,), values (entries,)
`<name>.parquet`               tables, by latent

Two of the tables, EXPLAINED, are also in `data/explained/<L>/`, where explain added what a language model said.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from strata.run.door import BadInput
from strata.run.files import again, check_hash, check_hashes, read_meta, sha256

META = {"layer": int, "latents": int, "shards": list}
EXPLAINED = ("explanations", "names")
EXPLAINED_META = {"layer": int, "latents": str, "files": dict}
PERSON = "person"  # who gave a name, beside the sources of explanations
ENTRIES = 4_000_000  # codes that a range of latents holds at most, 12 bytes each


@dataclass(frozen=True)
class Columns:
    """The codes of some consecutive latents, one latent after the other.

    ``starts``: (latents + 1,) the first entry of each latent. ``rows``: (entries,) int64 row numbers as
    `strata.rows.shards` counts them, ascending within a latent. ``values``: (entries,) float32, all above 0.
    """

    first: int
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, latent: int) -> slice:
        """Return where the entries of a latent are. ``latent``: its number in the layer."""
        return slice(self.starts[latent - self.first], self.starts[latent - self.first + 1])

    def latents(self) -> NDArray[np.int64]:
        """(entries,) the latent of each entry, counted from ``first``."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))


@dataclass(frozen=True)
class Codes:
    """The code shards of a folder.

    ``shards``: what meta.json lists. ``starts``: (shards, latents + 1) where the codes of each latent begin in a shard.
    """

    folder: Path
    shards: list[dict[str, Any]]
    starts: NDArray[np.int64]

    @property
    def latents(self) -> int:
        """How many latents the layer has."""
        return self.starts.shape[1] - 1

    def columns(self, first: int, end: int) -> Columns:
        """Read the codes of latents ``first`` … ``end`` - 1, and nothing else."""
        check_hashes(self.folder, self.shards, "interpret")
        counts = np.diff(self.starts[:, first : end + 1])  # (shards, latents)
        starts = np.concatenate([[0], counts.sum(0).cumsum()])
        rows, values = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.float32)

        # A shard holds the codes of one latent after the other. Its part of each latent goes behind that of the shards
        # before, so that rows ascend within a latent.
        next_place = starts[:-1].copy()
        for shard, count, shard_starts in zip(self.shards, counts, self.starts, strict=True):
            part = slice(int(shard_starts[first]), int(shard_starts[end]))
            if part.start == part.stop:  # safetensors cannot read an empty slice
                continue

            shift = next_place - (shard_starts[first:end] - shard_starts[first])
            place = np.arange(count.sum()) + np.repeat(shift, count)
            with _opened(self.folder / shard["file"]) as file:
                rows[place] = file.get_slice("rows")[part]
                values[place] = file.get_slice("values")[part]
            rows[place] += shard["first"]
            next_place += count
        return Columns(first, starts, rows, values)

    def shard(self, number: int) -> Columns:
        """Read the codes of all latents on the rows of one shard; rows are counted from the first of the shard."""
        check_hashes(self.folder, [self.shards[number]], "interpret")
        with _opened(self.folder / self.shards[number]["file"]) as file:
            rows, values = file.get_tensor("rows").astype(np.int64), file.get_tensor("values")
        return Columns(0, self.starts[number], rows, values)

    def ranges(self, entries: int = ENTRIES) -> Iterator[tuple[int, int]]:
        """Cut all latents into ranges [first, end) of at most ``entries`` entries, or of one latent that has more."""
        ends, first = self.starts.sum(0), 0
        while first < self.latents:
            end = int(np.searchsorted(ends, ends[first] + entries, side="right")) - 1
            end = max(first + 1, end)
            yield first, end
            first = end


def open_codes(folder: Path, shards: list[dict[str, Any]], latents: int) -> Codes:
    """Open the code ``shards`` of ``folder``. Raises BadInput that names a shard which is missing or damaged."""
    starts = np.zeros((len(shards), latents + 1), np.int64)
    for number, shard in enumerate(shards):
        with _opened(folder / shard["file"]) as file:
            shard_starts = file.get_tensor("starts")
        if shard_starts.shape != (latents + 1,) or shard_starts[-1] != shard["entries"]:
            raise BadInput(f"{folder / shard['file']} is not the shard that its meta.json describes")
        starts[number] = shard_starts
    return Codes(folder, shards, starts)


def _opened(path: Path) -> Any:
    """Open a safetensors file. Raises BadInput if it is missing or damaged."""
    try:
        return safe_open(path, "numpy")
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; {again('interpret')}") from None
    except OSError as error:
        raise BadInput(f"{path} is no file that can be read: {error}; {again('interpret')}") from None
    except SafetensorError as error:
        raise BadInput(f"{path} is damaged: {error}; {again('interpret')}") from None


@dataclass(frozen=True)
class ExplainedTables:
    """What explain wrote of a layer: the tables EXPLAINED of its ``folder``, and their hashes, ``files``."""

    folder: Path
    files: dict[str, str]


@dataclass(frozen=True)
class Latents:
    """All that is known of a layer's latents. ``meta``: what meta.json says.

    ``explained``: what explain wrote of them; None: explanations and names are those of interpret.
    ``names_by_people``: latent -> its name; they win.
    """

    folder: Path
    meta: dict[str, Any]
    codes: Codes
    explained: ExplainedTables | None = None
    names_by_people: Mapping[int, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The hash of meta.json, which holds the hashes of all other files."""
        return sha256(self.folder / "meta.json")

    def columns(self, first: int, end: int) -> Columns:
        """Read the codes of latents ``first`` … ``end`` - 1."""
        return self.codes.columns(first, end)

    def table(self, name: str, columns: list[str] | None = None, filters: Any = None) -> pa.Table | None:
        """Read the table `<name>.parquet`, or some columns and rows of it; None if there is no such file.

        ``columns``, ``filters``: see :func:`pyarrow.parquet.read_table`. A row group holds few latents, so
        ``filters=[("latent", "=", 42)]`` reads little.
        """
        folder, noted, stage = self.folder, self.meta.get("files", {}), "interpret"
        if self.explained is not None and name in EXPLAINED:
            folder, noted, stage = self.explained.folder, self.explained.files, "explain"
        path = folder / f"{name}.parquet"
        check_hash(folder, path.name, noted, stage)
        if not path.exists():
            return None
        return pq.read_table(path, columns=columns, filters=filters)

    def names(self) -> dict[int, str]:
        """Return latent -> its name. A latent that nobody named, and no explanation beats chance of, is missing."""
        table = self.table("names", ["latent", "name"])
        found = {} if table is None else {row["latent"]: row["name"] for row in table.to_pylist()}
        return {**found, **self.names_by_people}

    def statistics(self, filters: Any = None) -> pa.Table:
        """Read `statistics.parquet`, with the columns of `names.parquet` beside; null for a latent without a name."""
        table, named = self.table("statistics", filters=filters), self.table("names", filters=filters)
        assert table is not None, "interpret always writes it"
        if "interest" not in table.column_names:
            raise BadInput(f"{self.folder} was written by an older version of Strata; {again('interpret')}")
        rows = {} if named is None else {row["latent"]: row for row in named.to_pylist()}
        rows |= {latent: {"name": name, "named_by": PERSON} for latent, name in self.names_by_people.items()}
        for column in ("name", "named_by"):
            values = [rows.get(latent, {}).get(column) for latent in table["latent"].to_pylist()]
            table = table.append_column(column, pa.array(values, pa.string()))
        return table

    def rows(self, name: str, latent: int) -> list[dict[str, Any]]:
        """Return the rows of a table, or of :meth:`statistics`, for one latent; none where there is no such table."""
        filters = [("latent", "=", latent)]
        table = self.statistics(filters) if name == "statistics" else self.table(name, filters=filters)
        return [] if table is None else table.to_pylist()


def interpreted(folder: Path) -> bool:
    """Say whether the stage ran for this layer. `interpret.run: false` leaves a folder that only says "skipped"."""
    return not _meta(folder).get("skipped")


def _meta(folder: Path) -> dict[str, Any]:
    """Read meta.json and check that it has its keys."""
    return read_meta(folder / "meta.json", META, "interpret")


def of_stored_rows(folder: Path) -> bool:
    """Say whether the codes belong to the rows that the SAE was trained on. `interpret.texts` looks at other rows."""
    return interpreted(folder) and not _meta(folder)["texts"]


def check_origin(latents: Latents, shape: tuple[int, int], model: dict[str, Any]) -> None:
    """Refuse latents of another model than ``model`` describes, or of an SAE of another ``shape`` (latents, width)."""
    meta = latents.meta
    if meta["model"] != model:
        raise BadInput(
            f"{latents.folder} is of the model {meta['model']['name']}, not of {model['name']} as it is now; "
            "run extract and interpret again"
        )
    if (meta["latents"], meta["width"]) != shape:
        raise BadInput(
            f"{latents.folder} is of {meta['latents']} latents of width {meta['width']}, but the SAE has {shape[0]} "
            f"of width {shape[1]}; run interpret again"
        )


def chosen(latents: Latents, wanted: int | list[int], ranked: list[int], where: str) -> dict[int, float]:
    """Choose latents, and return {latent: its largest code on all text}.

    ``wanted``: the latents, or how many. If it is a number, living latents are taken in this order: those ``ranked``,
    those that the filters kept, the rest; the last two groups by falling importance. ``where``: the key of params.yaml
    that holds ``wanted``, for messages. Raises BadInput for a latent that does not exist, is dead or is named twice.
    """
    table = latents.table("statistics", ["latent", "max", "importance", "dead", "kept"])
    assert table is not None, "interpret always writes it"
    rows, named = table.to_pylist(), f"params.yaml: {where} names latent"
    if isinstance(wanted, int):
        others = sorted(rows, key=lambda row: (not row["kept"], -row["importance"], row["latent"]))
        order = dict.fromkeys([*ranked, *(row["latent"] for row in others)])
        wanted = [latent for latent in order if not rows[latent]["dead"]][:wanted]

    for latent in wanted:
        if not 0 <= latent < len(rows):
            raise BadInput(f"{named} {latent}, but {latents.folder} has {len(rows)}: 0 to {len(rows) - 1}")
        if rows[latent]["dead"]:
            raise BadInput(f"{named} {latent}, which is dead: nothing in the corpus makes it fire")
    if len(set(wanted)) < len(wanted):
        raise BadInput(f"{named}s twice: {wanted}")
    return {latent: rows[latent]["max"] for latent in wanted}


def open_latents(folder: Path, explained: Path | None = None) -> Latents:
    """Open a layer's folder, `data/latents/<L>/`. Raises BadInput if interpret was skipped, or files are missing.

    ``explained``: `data/explained/<L>/`, whose explanations and names then stand in place of interpret's own. Raises
    BadInput if they are of other latents.
    """
    meta = _meta(folder)
    if not interpreted(folder):
        raise BadInput(f"{folder} is empty: interpret was skipped; set interpret.run: true in params.yaml")
    latents = Latents(folder, meta, open_codes(folder, meta["shards"], meta["latents"]))
    if explained is None:
        return latents

    of = read_meta(explained / "meta.json", EXPLAINED_META, "explain")
    if of.get("latents") != latents.fingerprint:
        raise BadInput(f"{explained} explains other latents than those in {folder}; {again('explain')}")
    return replace(latents, explained=ExplainedTables(explained, of["files"]))
