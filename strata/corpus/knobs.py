"""The section fetch of params.yaml."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from strata.run.door import BadInput
from strata.run.params import Blob, EachOnce, Section

Kind = Literal["package", "mediawiki", "table", "text", "hub", "kaggle", "array", "sql"]
Unit = Literal["line", "paragraph", "section", "file"]
COLUMNS = {"text", "label", "title", "id", "vector", "blob"}
KNOBS: dict[Kind, set[str]] = {
    "package": {"unit", "without"},
    "mediawiki": {"unit"},
    "table": {*COLUMNS, "separator"},
    "text": {"unit"},
    "hub": {*COLUMNS, "config", "split", "revision"},
    "kaggle": {*COLUMNS, "separator", "unit", "file", "revision"},
    "array": {"vector", "id", "text", "label"},
    "sql": {*COLUMNS, "query"},
}
UNITS: dict[Kind, tuple[Unit, ...]] = {
    "package": ("section", "paragraph"),
    "mediawiki": ("section", "paragraph"),
    "text": ("paragraph", "line", "file"),
    "kaggle": ("paragraph", "line", "file"),
}


class LM(Section):
    """What makes activations: a language model, a sentence model, or none (the vectors come with the corpus)."""

    kind: Literal["language", "sentence", "vectors"]
    source: Annotated[str, Field(min_length=1)] | None
    revision: str | None
    trust_remote_code: bool


def check_source(lm: LM) -> None:
    """Refuse a model without a name, and a name where the kind is vectors, which come from the corpus.

    Stage select calls it when it checks all of params.yaml, and so does what fetches the model.
    """
    if lm.kind == "vectors" and lm.source is not None:
        raise BadInput(
            f"params.yaml: fetch.lm.source is {lm.source}, but with kind vectors it must be null: "
            "the vectors come from fetch.corpus.sources"
        )
    if lm.kind != "vectors" and lm.source is None:
        raise BadInput(f"params.yaml: fetch.lm.source is null, but a {lm.kind} model has to be named")


class Source(Section):
    """Where text comes from. Users write each source by hand, so keys that do not apply may be left out (None)."""

    source: str = Field(min_length=1)
    kind: Kind | Literal["auto"] = "auto"
    documents: int | None = Field(default=None, gt=0)  # how many of its documents are read at the most
    # Names of the columns of a table, a hub dataset or a query. Without ``text`` the text is in the column "text";
    # where ``vector`` is named, there need be none.
    text: str | None = None
    label: str | None = None
    title: str | None = None
    id: str | None = None
    vector: str | None = None  # the column, or array of an .npz, with vectors, for fetch.lm.kind: vectors
    # The type of the numbers in a BLOB. None: float32, but an error if they look like another type, e.g. float64.
    blob: Blob | None = None
    query: str | None = None  # of a database
    separator: str | None = Field(default=None, min_length=1, max_length=1)  # of a CSV; None: found out
    unit: Unit | None = None  # a document of a .txt file (None: a paragraph) or of an article (None: a section)
    config: str | None = None  # of a hub dataset
    split: str | None = None  # of a hub dataset; None: train
    revision: str | None = None  # of a hub dataset (commit, tag or branch) or a Kaggle dataset (version number)
    file: str | None = None  # of a Kaggle dataset
    without: Annotated[list[str], EachOnce] | None = None  # sets of package:sae-probes; None: its tasks of two classes

    @model_validator(mode="after")
    def _known_knobs(self) -> "Source":
        """Refuse keys that mean nothing for this kind of source. Kind auto is checked later, when the kind is known."""
        if self.kind != "auto":
            named = {name for name in set().union(*KNOBS.values()) if getattr(self, name) is not None}
            if wrong := sorted(named - KNOBS[self.kind]):
                raise ValueError(f"{wrong[0]} means nothing for {self.source}, which is of the kind {self.kind}")
            units = UNITS.get(self.kind)
            if self.unit and units and self.unit not in units:
                raise ValueError(f"unit is {self.unit}, but a document of {self.source} is a {' or a '.join(units)}")
            if self.kind == "sql" and self.query is None:
                raise ValueError(f"{self.source} is a database: it needs a query, e.g. SELECT id, vector FROM items")
        return self


class Corpus(Section):
    """Which text, how much of it, and how it is split. See params.yaml."""

    sources: Annotated[list[Source], EachOnce] = Field(min_length=1)  # none of them twice
    documents: int | None = Field(gt=0)
    min_chars: Annotated[int, Field(ge=0)] | Literal["auto"]
    max_chars: int | None = Field(gt=0)
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] | None  # Jaccard overlap; None: keep all
    balance: int | Literal["smallest"] | None  # documents kept of each label; smallest: as many as the rarest label has
    max_bad_rows: int = Field(ge=0)  # rows without a usable vector that are left out; more: an error
    validation: float = Field(ge=0, lt=1)
    test: float = Field(ge=0, lt=1)
    stratify: bool  # the same shares within every label

    @model_validator(mode="after")
    def _possible(self) -> "Corpus":
        """Refuse values that leave no documents."""
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on")
        if isinstance(self.min_chars, int) and self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars {self.max_chars} is less than min_chars {self.min_chars}")
        if isinstance(self.balance, int) and self.balance < 1:
            raise ValueError(
                f"balance {self.balance} keeps nothing; write how many documents of a label, smallest or null"
            )
        return self


class Fetch(Section):
    """The model and the text. See params.yaml."""

    lm: LM
    corpus: Corpus


def over(corpus: dict[str, Any], texts: dict[str, Any]) -> dict[str, Any]:
    """Make the section corpus of another text.

    ``corpus``: the section fetch.corpus. ``texts``: the section interpret.texts, whose keys replace those of
    ``corpus``. Unless ``texts`` says so, no documents of it are held out, because nothing is trained on it. Raises
    BadInput where ``texts`` lacks sources.
    """
    if "sources" not in texts:
        raise BadInput("params.yaml: interpret.texts lacks sources; for the training text write null")
    return {**corpus, "validation": 0.0, "test": 0.0, **texts}
