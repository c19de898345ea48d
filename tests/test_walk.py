"""A walk through the pages of a whole run, as a reader takes it: no dead link, nothing from elsewhere, no barrier.

The run is that of this checkout, or of the checkout that `STRATA_RUN` names. The walk goes from the report to the best
latent, its family, the map, the search, a page that the server makes, a text of one's own, and back.
"""

import json
import os
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from benchmarks import browser
from benchmarks.serving import started

RUN = Path(os.environ.get("STRATA_RUN") or Path(__file__).resolve().parents[1])
REPORTS = RUN / "reports"
PORT = 8767
CTRL = 2  # of the modifiers of a key
SERIOUS = ("serious", "critical")  # of axe's four words for how bad a barrier is

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPORTS / "report.html").exists(), reason="the pipeline has not run in this checkout"),
]


class Links(HTMLParser):
    """The links of a page, and the places in it that links may lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.to: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.to += [given[name] for name in ("href", "src") if name in given]
        self.places |= {given["id"]} if "id" in given else set()


@cache
def links(page: Path) -> Links:
    found = Links()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def written() -> list[Path]:
    return sorted(REPORTS.rglob("*.html"))


def layers() -> list[int]:
    return sorted(int(folder.name) for folder in (REPORTS / "latents").iterdir() if folder.is_dir())


def dead(page: Path, link: str) -> bool:
    """Whether a link of a page leads nowhere. An index and a map read what stands behind the # themselves."""
    parts = urlsplit(link)
    if parts.scheme == "data":
        return False
    if parts.scheme or parts.netloc:
        return True  # elsewhere
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists():
        return True
    searched = target.name == "index.html" or target.name.startswith("map")
    return bool(parts.fragment) and not searched and parts.fragment not in links(target).places


def test_no_link_is_dead():
    assert len(written()) > 10
    found = {
        (str(page.relative_to(REPORTS)), link) for page in written() for link in links(page).to if dead(page, link)
    }
    assert not found


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of a server of the last layer, as `make serve` starts it."""
    if browser.path() is None:
        pytest.skip("no Chromium is installed; CHROME_PATH may name one")
    with started(PORT, str(RUN / "data/sae" / str(layers()[-1]))):
        yield f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory, served: str) -> Iterator[browser.Page]:
    binary = browser.path()
    assert binary, "`served` skips where there is none"
    with browser.opened(binary, tmp_path_factory.mktemp("profile"), "file:", served) as page:
        page.size(1280, 900)
        yield page


def click(tab: browser.Page, selector: str) -> None:
    """Go where the first link leads that fits ``selector``."""
    place = tab.run(f"document.querySelector({json.dumps(selector)})?.href")
    assert place, f"{tab.run('location.href')} has no link {selector}"
    tab.visit(place)


def test_a_walk_through_files(tab: browser.Page):
    """Report → the best latent → its family on the map → the latent again → the index → a search → the report."""
    tab.open(REPORTS / "report.html")
    click(tab, "a[href^='latents/'][href$='.html']:not([href$='index.html']):not([href$='map.html'])")
    best = tab.run("location.pathname")
    click(tab, "a[href*='map']")
    assert "map" in tab.run("location.pathname")
    click(tab, "aside a[href$='.html']")
    tab.visit(f"file://{best}")
    click(tab, "a[href='index.html']")
    tab.wait("document.querySelector('tbody tr') !== null")
    tab.run("query.value = 'year'; query.dispatchEvent(new Event('input'))")
    assert tab.run("location.hash").startswith("#q=year"), "what is searched for can be sent as a link"
    click(tab, "a[href$='report.html']")
    assert tab.run("document.title") and tab.complaints == []


def test_a_walk_through_the_server(tab: browser.Page, served: str):
    """A text of one's own → a latent without a file → its neighbour → the index → and back to the text."""
    tab.visit(served)
    tab.wait("at('facts').textContent.includes('latents')")
    tab.run("at('text').value = 'The battle began in May 1863.'; document.querySelector('#explain button').click()")
    tab.wait("document.querySelectorAll('main article').length > 5")
    click(tab, "main article a")
    first = tab.run("document.querySelector('h1').textContent")
    assert first.startswith("Latent ")
    tab.visit(tab.run("[...document.links].find(link => /\\/[0-9]+\\.html$/.test(link.href)).href"))
    assert tab.run("document.querySelector('h1').textContent") not in ("", first)
    click(tab, "a[href='index.html']")
    tab.wait("document.querySelectorAll('tbody tr').length > 10")
    assert tab.run("[...document.querySelectorAll('tbody tr td.id')].every(cell => cell.querySelector('a'))")
    assert tab.complaints == []


def reach(tab: browser.Page, selector: str, most: int = 400) -> None:
    """Press Tab until what has the focus fits ``selector``; what has it must be seen to have it."""
    for _ in range(most):
        tab.press("Tab", 9)
        if tab.run(f"document.activeElement.matches({json.dumps(selector)})"):
            assert tab.run("document.activeElement.matches(':focus-visible')")
            return
    raise AssertionError(f"{tab.run('location.href')}: {most} times Tab lead to no {selector}")


def follow(tab: browser.Page, selector: str) -> None:
    """Reach a link by Tab, and go where it leads by Enter."""
    reach(tab, selector)
    place = tab.run("document.activeElement.href")
    enter(tab)
    tab.wait(f"location.href === {json.dumps(place)} && document.readyState === 'complete'")


def enter(tab: browser.Page) -> None:
    tab.press("Enter", 13, text="\r")


def test_a_walk_by_keyboard_alone(tab: browser.Page, served: str):
    """Report → latent → map → what is searched for there → index → search → report; a text → its latent → the text."""
    tab.open(REPORTS / "report.html")
    follow(tab, "main a[href^='latents/'][href*='/'][href$='.html']:not([href$='index.html']):not([href$='map.html'])")
    assert tab.run("document.querySelector('h1').textContent").startswith("Latent ")
    follow(tab, "a[href*='map']")
    reach(tab, "input[type=search]")
    tab.call("Input.insertText", text="year")
    follow(tab, "aside a[href$='.html']")
    follow(tab, "a[href='index.html']")
    reach(tab, "input[type=search]")
    tab.call("Input.insertText", text="year")
    tab.wait("location.hash.startsWith('#q=year')")
    follow(tab, "tbody a[href$='.html']")
    follow(tab, "a[href$='report.html']")

    tab.visit(served)
    tab.wait("at('facts').textContent.includes('latents')")
    reach(tab, "textarea")
    tab.press("a", 65, modifiers=CTRL, commands=["selectAll"])  # an example stands there
    tab.call("Input.insertText", text="The battle began in May 1863.")
    reach(tab, "#explain button")
    enter(tab)
    tab.wait("document.querySelectorAll('main article').length > 5")
    follow(tab, "main article a[href*='/pages/'], main article a[href^='pages/']")
    assert tab.run("document.querySelector('h1').textContent").startswith("Latent ")
    tab.run("history.back()")  # what Alt and the left arrow do; a headless browser does not know them
    tab.wait("document.querySelectorAll('main article').length > 5 && at('text').value.includes('1863')")
    assert tab.complaints == []


def pages_to_judge() -> list[str]:
    """One page of each kind."""
    layer = layers()[-1]
    latent = next((REPORTS / "latents" / str(layer)).glob("[0-9]*.html"))
    maps = sorted(REPORTS.rglob("map*.html"))
    kinds = [
        REPORTS / "report.html",
        REPORTS / "latents/index.html",
        latent.with_name("index.html"),
        latent,
        *maps[-1:],
    ]
    return [page.as_uri() for page in kinds]


def axe() -> str:
    """The script that finds barriers: the file `axe.min.js` of npm's axe-core, which `AXE_PATH` names."""
    if (path := os.environ.get("AXE_PATH")) is None:
        pytest.skip("AXE_PATH names no axe.min.js; `npm pack axe-core` brings one")
    return Path(path).read_text(encoding="utf-8")


def barriers(tab: browser.Page) -> list[Any]:
    """What keeps people with a screen reader, a keyboard or weak eyes from reading the page, and where."""
    tab.run(axe())
    tab.run("axe.run({preload: false}).then(found => window.barriers = found.violations)")
    tab.wait("!!window.barriers")
    read = "barriers.map(one => [one.impact, one.id, one.nodes.slice(0, 3).map(node => node.html.slice(0, 160))])"
    found = json.loads(tab.run(f"JSON.stringify({read})"))
    return [barrier for barrier in found if barrier[0] in SERIOUS]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_has_a_serious_barrier(tab: browser.Page, served: str, scheme: str, width: int):
    tab.size(width, 900)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    found = {}
    for address in [*pages_to_judge(), served, f"{served}/live", f"{served}/docs"]:
        tab.visit(address)
        if wrong := barriers(tab):
            found[address] = wrong
        assert tab.run("document.documentElement.scrollWidth") <= width, f"{address} is wider than {width}"
    assert not found, json.dumps(found, indent=1)
    assert tab.complaints == []
