"""A source of params.yaml -> its documents: files, folders, packages, databases, datasets of the hub or of Kaggle."""

import glob
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from yaml import YAMLError  # noqa: TID251 - to tell a dataset whose card is broken

from strata.corpus import database, lines, mediawiki, packaged, tables, vectors
from strata.corpus.document import Document
from strata.corpus.knobs import COLUMNS, Kind, Source
from strata.corpus.place import find
from strata.corpus.wheels import WHEELS
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.run.params import check

# Text that comes with an installed package: name -> (module, file inside its folder).
PACKAGES = {
    "gensim-wikipedia": (
        "gensim",
        "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    )
}
SUFFIXES = {*tables.SUFFIXES, *lines.PACKED, *vectors.SUFFIXES, *database.SUFFIXES, ".txt", ".xml"}
FOLDER = "{0} is a folder here, and a folder has no revision; remove the key, or, for the hub's {0}, rename the folder"


def resolved(source: Source) -> Source:
    """Replace the kind `auto` of ``source`` by the first of these that fits:

    1. `package:NAME`: text that an installed package carries;
    2. `hub:NAME` and `kaggle:OWNER/NAME` say it themselves, and so does a database's URL, written out or in an
       environment variable (`postgresql://…`, `env:NAME`); every other URL is taken for a database's, too;
    3. a file or folder that is there: by its suffix a table (.csv, .tsv, .jsonl, .parquet), an array (.npy, .npz), a
       SQLite database (.sqlite, .db), a text (.txt) or a MediaWiki dump (.xml, .xml.bz2, .bz2); a folder is a dataset
       in the hub's layout;
    4. a source with a `file` is a Kaggle dataset, one with a `revision` a hub dataset: these keys pin them.

    A source of another kind is returned as it is. Raises BadInput where nothing fits.
    """
    if source.kind != "auto":
        return source

    # A prefix says the kind. `package:` stays in the name, because meta.json shows it so; see _packaged.
    prefix, colon, name = source.source.partition(":")
    if colon and prefix in ("hub", "kaggle"):
        return _as(source, prefix, source=name)
    if colon and prefix == "package":
        return _as(source, "package")
    if colon and (name.startswith("//") or prefix == "env"):
        return _as(source, "sql")

    # `find` raises BadInput where nothing is there and the name looks like a path: it has one of these suffixes, or
    # begins with ".", "/" or "~". Any other name gives None.
    if path := find(source.source, SUFFIXES):
        kind = _path_kind(path)
        if kind == "hub" and source.revision:
            raise BadInput(FOLDER.format(source.source))
        return _as(source, kind)
    if source.file:
        return _as(source, "kaggle")
    if source.revision:
        return _as(source, "hub")
    raise BadInput(
        f"{source.source} is no file or folder here; for a hub dataset add its revision, for a Kaggle dataset its "
        "file and revision (the version's number)"
    )


def _as(original: Source, kind: str, **changes: str) -> Source:
    """Copy a source with another kind and other ``changes``; check whether its keys mean something for that kind."""
    return check({**original.model_dump(), "kind": kind, **changes}, Source, "params.yaml: fetch.corpus.sources")


def _path_kind(path: Path) -> Kind:
    """Tell the kind of an existing file or folder by its suffix. Raises BadInput for an unknown one."""
    suffix = lines.kind(path)  # of what is inside: .csv for data.csv.gz
    if path.is_dir():
        return "hub"
    if suffix in tables.SUFFIXES:
        return "table"
    if suffix in vectors.SUFFIXES:
        return "array"
    if suffix in database.SUFFIXES:
        return "sql"
    if suffix == ".txt":
        return "text"
    # A part of Wikipedia's dump is called ….xml-p10p30302.bz2: only its last suffix is known.
    if suffix == ".xml" or path.suffix.lower() in (".xml", ".bz2"):
        return "mediawiki"
    raise BadInput(f"{path} has a suffix that says nothing of what is inside; add kind: mediawiki, table, text or sql")


def documents(source: Source) -> Generator[Document, None, None]:
    """Yield the documents of a resolved source, in its order, at most ``source.documents`` of them.

    If the generator is closed early, no file or connection stays open. Raises BadInput for a text that is too long for
    a document.
    """
    with closing(_all(source)) as stream:
        for document in islice(stream, source.documents):
            if len(document.text) > lines.LONGEST:
                raise BadInput(
                    f"{document.title}: the text has {len(document.text):,} characters, and a document at the most "
                    f"{lines.LONGEST:,}; cut it"
                )
            yield document


def _all(source: Source) -> Generator[Document, None, None]:
    """Open a resolved source with the reader of its kind; yield all documents."""
    if source.kind == "hub":
        return _hub(source)
    if source.kind == "sql":
        return _query(source)
    if wheel := _wheel(source):
        return packaged.documents(wheel, source.without)
    path = _file(source)
    if source.kind in ("package", "mediawiki"):
        return mediawiki.documents(path, source.unit == "paragraph")
    if source.kind == "array":
        return vectors.rows(path, source.vector, source.id, source.text, source.label)
    # A Kaggle dataset's file says by its suffix what it is: a .txt is plain text, everything else a table.
    if source.kind == "text" or (source.kind == "kaggle" and lines.kind(path) == ".txt"):
        return tables.text_documents(path, source.unit or "paragraph")
    return tables.documents(path, _columns(source, path.name), source.separator)


def facts(source: Source) -> dict[str, Any]:
    """Describe a source for meta.json: its keys, its name without the folder where it lay, and its file's SHA-256.

    A dataset in the hub's layout, and a database with a URL, have no SHA-256.
    """
    keys = source.model_dump(exclude_none=True)
    if source.kind == "hub":
        folder = _hub_folder(source)
        return {**keys, "source": folder.name} if folder else keys
    if source.kind == "sql" and _sqlite(source) is None:
        return {**keys, "source": database.shown(source.source)}  # without the password in the URL
    if wheel := _wheel(source):
        return {**keys, "sha256": WHEELS[wheel].sha256}

    path = _file(source)
    name = source.source if source.kind in ("package", "kaggle") else path.name
    return {**keys, "source": name, "sha256": sha256(path)}


def _file(source: Source) -> Path:
    """Find the file of a source that is one file; a Kaggle dataset is downloaded if need be."""
    match source.kind:
        case "package":
            return _packaged(source.source)
        case "kaggle":
            return _kaggle(source)
        case _:
            return _local(source)


def _wheel(source: Source) -> str | None:
    """Return the package of WHEELS whose texts ``source`` asks for; None for another source.

    Raises BadInput where the source has a key that means nothing for it.
    """
    name = source.source.removeprefix("package:")
    if source.kind != "package":
        return None
    if source.unit is not None and name in WHEELS:
        raise BadInput(f"params.yaml: fetch.corpus.sources: unit means nothing for {source.source}")
    if source.without is not None and name != "sae-probes":
        raise BadInput(f"params.yaml: fetch.corpus.sources: without means nothing for {source.source}")
    return name if name in WHEELS else None


def _columns(source: Source, where: str) -> tables.Columns:
    """Say which columns hold what. The text is in the column `text` unless ``source`` names another.

    Only a source that names a column of vectors may lack a text.
    """
    text = source.text or (None if source.vector else "text")
    return tables.Columns(where, text, source.label, source.title, source.id, source.vector, source.blob)


def _query(source: Source) -> Generator[Document, None, None]:
    """Yield a document for each row of a database query.

    The result must have the columns `id` and `vector`, unless ``source`` names others for them.
    """
    path = _sqlite(source)
    where = path.name if path else database.shown(source.source)
    columns = _columns(source.model_copy(update={"vector": source.vector or "vector", "id": source.id or "id"}), where)
    with closing(database.rows(path or database.address(source.source), source.query or "", where)) as rows:
        yield from columns.documents(rows)


def _sqlite(source: Source) -> Path | None:
    """Find the file of a SQLite database that is named by its path; None where a URL names the database."""
    return None if "://" in source.source or source.source.startswith(database.VARIABLE) else _local(source)


def _packaged(source: str) -> Path:
    """Find the text file that an installed package carries. Raises BadInput where package or file is missing."""
    name = source.removeprefix("package:")
    if name not in PACKAGES:
        known = ", ".join([*PACKAGES, *WHEELS])
        raise BadInput(f"{source} is not a known text; the packages with one are {known}")
    module, file = PACKAGES[name]
    spec = find_spec(module)  # the module itself need not be imported for its file
    if spec is None or spec.origin is None:
        raise BadInput(f"{source} needs the package {module}; `pip install {module}`")

    path = Path(spec.origin).parent / file
    if not path.exists():
        raise BadInput(
            f"the package {module} that is installed here does not carry {path.name}; reinstall it with its tests"
        )
    return path


def _local(source: Source) -> Path:
    """Find the file that ``source`` names. Raises BadInput where it is missing."""
    path = find(source.source, SUFFIXES)
    if path is None or not path.is_file():
        raise BadInput(f"{source.source} is missing; params.yaml names it as a {source.kind} source")
    return path


def _hub_folder(source: Source) -> Path | None:
    """Find the local folder in the hub's layout; None for a dataset of the hub itself, which has a revision.

    Raises BadInput where a folder has a revision: the package datasets would read it in place of the hub's dataset.
    """
    if source.revision is None:
        return find(source.source, SUFFIXES)
    if Path(source.source).is_dir():
        raise BadInput(FOLDER.format(source.source))
    return None


def _hub(source: Source) -> Generator[Document, None, None]:
    """Stream a dataset of the hub, or of a local folder in the hub's layout; read nothing past the last document."""
    folder = _hub_folder(source)
    if folder is None and source.revision is None:
        raise BadInput(f"{source.source} is a hub dataset, which changes with time: pin its revision")
    import datasets  # half a second, and only this source needs it
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    columns = _columns(source, folder.name if folder else source.source)
    try:
        with _without_patterns(folder) if folder else nullcontext(source.source) as place:
            split = source.split or "train"
            if folder and (files := _csv_files(str(place), source.config, split)):
                for file in files:
                    yield from tables.documents(Path(file), columns, None)
                return

            stream = datasets.load_dataset(
                str(place), source.config, split=split, revision=source.revision, streaming=True
            )
            if stream.column_names:  # None where a row must be read first; then columns.documents checks that row
                columns.check(stream.column_names)
                stream = stream.select_columns(sorted(set(columns.named.values())))

            # A column of classes holds numbers, which stand for names.
            classes = {name: getattr(feature, "names", None) for name, feature in (stream.features or {}).items()}
            rows = (
                {name: tables.class_name(value, classes.get(name)) for name, value in row.items()} for row in stream
            )
            yield from columns.documents(rows)
    # BadInput is none of these: what our own readers refuse passes through with its own sentence. The YAML head of a
    # README.md may be broken (YAMLError), or give the columns types that datasets does not expect (TypeError).
    except (DatasetsError, HfHubHTTPError, YAMLError, OSError, TypeError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"the dataset {source.source} could not be read: {' '.join(str(error).split())}") from None


def _csv_files(place: str, config: str | None, split: str) -> list[str]:
    """List the files of a ``split`` of a local dataset if they are CSV, for our own reader; else none.

    ``split`` may be a sum, as `train+test`; with a part that does not exist, datasets finds the words for the error.
    The package datasets reads CSV by pandas, which turns 007 into 7 and NA into nothing, and moves the values of a line
    that is too long under other names. A dataset whose card gives the types of its columns is left to it all the same.
    """
    import datasets
    from datasets.packaged_modules.csv.csv import Csv

    builder = datasets.load_dataset_builder(place, config)
    if not isinstance(builder, Csv) or builder.info.features is not None:
        return []
    by_split, parts = builder.config.data_files or {}, [part.strip() for part in split.split("+")]
    return [file for part in parts for file in by_split[part]] if all(part in by_split for part in parts) else []


@contextmanager
def _without_patterns(folder: Path) -> Iterator[Path]:
    """Yield ``folder``, or a temporary folder of links to its files where its path holds `[`, `*` or `?`.

    The package datasets takes a path with these characters for a pattern.
    """
    if glob.escape(str(folder.resolve())) == str(folder.resolve()):
        yield folder
        return

    with tempfile.TemporaryDirectory(prefix="strata-") as home:
        for file in folder.resolve().rglob("*"):  # a link to the folder would not do: datasets resolves it
            if file.is_file():
                link = Path(home) / file.relative_to(folder.resolve())
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        yield Path(home)


def _kaggle(source: Source) -> Path:
    """Download one file of a Kaggle dataset, or take it from kagglehub's cache."""
    if source.file is None or source.revision is None:
        raise BadInput(
            f"{source.source} is a Kaggle dataset: it needs a file, and the number of its version as revision"
        )
    is_text = lines.kind(Path(source.file)) == ".txt"
    unused = ("separator", *COLUMNS) if is_text else ("unit",)
    if wrong := [name for name in unused if getattr(source, name) is not None]:
        what = "plain text" if is_text else "a table"
        raise BadInput(f"{wrong[0]} means nothing for {source.file} of {source.source}, which is {what}")
    import kagglehub
    from kagglehub import exceptions

    handle = f"{source.source}/versions/{source.revision}"
    try:
        return Path(kagglehub.dataset_download(handle, path=source.file))
    except (
        OSError,
        ValueError,
        exceptions.NotFoundError,
        exceptions.UnauthenticatedError,
        exceptions.BackendError,
    ) as error:
        raise BadInput(
            f"{source.file} of {handle} could not be fetched from Kaggle: {' '.join(str(error).split())}"
        ) from None
