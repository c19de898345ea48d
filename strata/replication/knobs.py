"""The section stability of params.yaml."""

from pydantic import Field

from strata.run.params import Section

FLOAT, SUM = 4.0, 8.0  # bytes of a weight, and of a sum in float64
BLOCK = 1024  # latents whose similarities with all others are in memory at a time


class Stability(Section):
    """How often the SAE is trained again, and when a latent counts as the same. See params.yaml."""

    seeds: int = Field(ge=0, le=1000)
    cosine: float = Field(ge=0.3, lt=1)
    cofiring: float = Field(ge=0.3, lt=1)
    rows: int = Field(gt=1, le=10**8)
    pool: bool
    ce_tokens: int = Field(ge=0, le=10**9)

    def held_bytes(self, latents: int, width: int) -> float:
        """Estimate the bytes that are held when all trainings are done.

        They are the weights of all SAEs, a block of similarities, and with ``pool`` the sums over pairs of pooled
        latents and a copy of them. The pool may be larger than the dictionary.
        """
        if not self.seeds:
            return 0.0
        saes = FLOAT * 2 * latents * width * (self.seeds + 1)
        similarities = 3 * SUM * BLOCK * latents  # what makes a block of them included
        pooled = 2 * SUM * self.most_pooled(latents) ** 2 if self.pool else 0.0
        return saes + similarities + pooled

    def most_pooled(self, latents: int) -> int:
        """Return how many latents the pool may have: each of them is in two SAEs at least."""
        return latents * (self.seeds + 1) // 2
