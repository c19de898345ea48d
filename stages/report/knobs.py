"""The section report of params.yaml."""

from pydantic import Field

from stages.params import Section


class Report(Section):
    """The section ``report``."""

    title: str
    outlier_tokens: int
    pages: int = Field(ge=0)
