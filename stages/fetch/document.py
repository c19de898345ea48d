"""What every text source yields."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text with a name, and the label it carries, if any."""

    title: str
    label: str | None
    text: str
