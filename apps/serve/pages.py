"""The pages of a layer's latents, made when they are asked for: the report writes those of the most important alone."""

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from strata.interpretation.read import Latents
from strata.run.files import read_json

if TYPE_CHECKING:
    from stages.report.layer import Layer


class Pages:
    """The pages of all ``latents``.

    ``reports``: the folder with what later stages measured of them.
    """

    def __init__(self, latents: Latents, reports: Path) -> None:
        self._latents, self._reports = latents, reports

    @cached_property
    def _layer(self) -> "Layer":
        """The layer, of which each latent has a page."""
        from stages.report.families import read_families
        from stages.report.layer import read_layer  # draws pictures, too, and takes a second to import
        from strata.families.read import clustered, open_clusters

        latents, folder = int(self._latents.meta["latents"]), self._latents.folder
        clusters = folder.parents[1] / "clusters" / folder.name
        families = None
        if (clusters / "meta.json").exists() and clustered(clusters):
            families = read_families(open_clusters(clusters), {})
        return read_layer(self._latents, latents, range(latents), families)

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

    def map(self) -> str | None:
        """Return the map of the layer, in which each latent is a link; None where cluster did not run."""
        from stages.report.latents import map_page

        return map_page(self._layer)

    def _measured(self, stage: str) -> dict[int, Any]:
        """Return layer -> what a stage measured; nothing where it did not run."""
        layer = self._latents.meta["layer"]
        path = self._reports / stage / f"{layer}.json"
        numbers = read_json(path) if path.exists() else {"skipped": True}
        return {} if "skipped" in numbers else {layer: numbers}


def routes(folder: Path, pages_of: Callable[[int], Pages | None]) -> list[BaseRoute]:
    """Return what answers under /pages: the report's files, and a page for any latent of the layers of ``pages_of``.

    ``folder``: `reports/latents`. ``pages_of``: a layer -> its pages; None where only the files are known. The report
    itself is answered, too, because pages link to it, and it to them as `latents/…`.
    """

    def page(request: Request) -> Response:
        layer, name = request.path_params["layer"], request.path_params.get("name", "index")
        if not re.fullmatch(r"[0-9]{1,4}", layer):
            raise HTTPException(404, f"{layer[:20]!r} is no layer")
        known, text = pages_of(int(layer)), None
        if known is not None and name == "index":
            text = known.index()
        elif known is not None and name == "map":
            text = known.map()
        elif known is not None and re.fullmatch(r"[0-9]{1,9}", name):
            text = known.latent(int(name))

        file = folder / layer / f"{name}.html"
        if text is None and not file.is_file():
            raise HTTPException(404, f"layer {layer[:20]} has no page {name[:20]!r}")
        return HTMLResponse(text) if text is not None else FileResponse(file)

    def report(request: Request) -> Response:
        file = folder.parent / "report.html"
        if not file.is_file():
            raise HTTPException(404, "the stage report has not run")
        return FileResponse(file)

    def linked(request: Request) -> Response:
        path = request.path_params["path"]
        return RedirectResponse("../" * (path.count("/") + 1) + f"pages/{path}.html")

    return [
        Route("/pages/{layer}/{name}.html", page),
        Route("/pages/{layer}/", page),
        Mount("/pages", StaticFiles(directory=folder, html=True)),
        Route("/report.html", report),
        Route("/latents/{path:path}.html", linked),
    ]
