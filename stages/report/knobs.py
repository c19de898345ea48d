"""The section report of params.yaml."""

from pydantic import Field

from strata.run.params import Section


class Report(Section):
    """The section ``report``."""

    title: str = Field(min_length=1)
    outlier_tokens: int = Field(ge=0, le=10_000)
    pages: int = Field(ge=0, le=1000000)
