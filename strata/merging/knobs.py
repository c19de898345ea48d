"""The section merge of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from strata.run.params import EachOnce, Section


class Merge(Section):
    """How far a dictionary is merged, and how. See params.yaml."""

    run: bool
    latents: float | None = Field(gt=0, le=1)
    by: Literal["loss", "clusters"]
    codes: Literal["sum", "cosine"]
    encoder: Literal["parts", "mean"]
    ridge: float = Field(ge=0)
    curve: Annotated[list[float], EachOnce]
    ce_tokens: int = Field(ge=0, le=10**9)

    def held_bytes(self, latents: int) -> float:
        """Estimate the bytes of the sums over pairs of ``latents`` and over pairs of merged latents, float64."""
        return 8.0 * (latents**2 + round((self.latents or 1) * latents) ** 2)

    @field_validator("curve")
    @classmethod
    def _shares(cls, curve: list[float]) -> list[float]:
        if not all(0 < share <= 1 for share in curve):
            raise ValueError(f"curve is {curve}; it must hold shares of the living latents, above 0 and at most 1")
        return curve
