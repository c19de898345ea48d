"""The pages of a layer's latents, made when they are asked for: the report writes those of the most important alone."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.interpretation.read import Latents
from strata.run.files import read_json

if TYPE_CHECKING:
    from stages.report.latents import Layer


class Pages:
    """The pages of all ``latents``.

    ``reports``: the folder with what later stages measured of them.
    """

    def __init__(self, latents: Latents, reports: Path) -> None:
        self._latents, self._reports = latents, reports

    @cached_property
    def _layer(self) -> "Layer":
        """The layer, of which each latent has a page."""
        from stages.report.latents import read_layer  # draws pictures, too, and takes a second to import

        latents = int(self._latents.meta["latents"])
        return read_layer(self._latents, latents, range(latents))

    def latent(self, latent: int) -> str | None:
        """Return the page of a latent; None if there is no such latent."""
        from stages.report.causes import Causes
        from stages.report.latents import latent_pages

        if not 0 <= latent < self._latents.meta["latents"]:
            return None
        causes = Causes(self._measured("steer_eval"), self._measured("invert"), self._measured("evaluate"))
        ((_, page),) = latent_pages(self._layer, causes, [latent])
        return page

    def index(self) -> str:
        """Return the index of the layer, in which each latent is a link."""
        from stages.report.latents import index

        return index(self._layer)

    def _measured(self, stage: str) -> dict[int, Any]:
        """Return layer -> what a stage measured; nothing where it did not run."""
        layer = self._latents.meta["layer"]
        path = self._reports / stage / f"{layer}.json"
        numbers = read_json(path) if path.exists() else {"skipped": True}
        return {} if "skipped" in numbers else {layer: numbers}
