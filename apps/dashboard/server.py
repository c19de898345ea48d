"""Serve the dashboard, and beside it, at the same address, a page for each latent, made when it is asked for."""

from functools import lru_cache
from pathlib import Path

from starlette.middleware import Middleware
from starlette.routing import BaseRoute
from streamlit.starlette import App

from apps.dashboard import charts
from apps.dashboard import tabs as _tabs  # noqa: F401  imported so that the first page need not wait for it
from apps.dashboard.artifacts import Project
from apps.serve.guard import Doorkeeper
from apps.serve.pages import Pages
from apps.serve.pages import routes as page_routes


def start(app: Path, project: Project, port: int) -> None:
    """Serve the page that the script ``app`` draws, on this machine alone, until it is stopped."""
    options = {
        "server.port": port,
        "server.address": "127.0.0.1",
        "server.headless": True,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "theme.primaryColor": charts.BLUE,
    }
    guard = Middleware(Doorkeeper, token=None, hosts=frozenset())
    App(app, routes=routes(project), middleware=[guard]).run(config=options)


def routes(project: Project) -> list[BaseRoute]:
    """Return what answers under /pages, for all layers; nothing where the stage report has not run."""

    @lru_cache(maxsize=4)  # layers
    def of_files(layer: int, stamp: int, named: int) -> Pages | None:
        latents = project.latents(layer)
        return None if latents is None else Pages(latents, project.reports)

    def pages_of(layer: int) -> Pages | None:
        return of_files(layer, project.stamp(), project.named())

    return page_routes(project.pages, pages_of) if project.pages.is_dir() else []
