"""The kind, number and width of the rows that an SAE is trained on."""

from dataclasses import dataclass

DOCUMENTS = ("sentence", "vectors")  # kinds of fetch.lm whose rows are documents; their hook has the same name


@dataclass(frozen=True)
class Size:
    """The size of the training data: ``rows`` training rows of ``width`` numbers.

    ``kind``: the kind of fetch.lm, or the hook of the rows, which is the same for documents.
    """

    kind: str
    rows: int
    width: int

    @property
    def documents(self) -> bool:
        """Whether a row is a document; else it is a token of a language model."""
        return self.kind in DOCUMENTS
