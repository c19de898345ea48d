"""The document: what every source yields."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text with a name, and where the source has them a label, the id of its row, and a vector.

    ``vector``: its float32 numbers as bytes; or a text that says why the row has no usable vector; or None where the
    source has none.
    """

    title: str
    label: str | None
    text: str
    id: str | None = None
    vector: bytes | str | None = None
