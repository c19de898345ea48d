"""What every source yields."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text with a name, and what it carries, if anything: a label, the id of its row, a vector.

    ``vector``: float32, as bytes; or why the row has none although it should.
    """

    title: str
    label: str | None
    text: str
    id: str | None = None
    vector: bytes | str | None = None
