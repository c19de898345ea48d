"""The map of the latents in a browser: it leads to their pages, shows what is searched for, and can be sent."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cluster import AT_ONCE, layer
from test_grouping import knobs

from benchmarks import browser
from stages.report.families import linked
from strata.families import cluster as room
from strata.interpretation.read import open_latents

PAGES, WITHOUT = [0, 1, 2], 40  # latents that have a page, and one that has none


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The map among the latents' pages, as the report puts it there; some latents have a page."""
    root = tmp_path_factory.mktemp("map")
    room.cluster(layer(root / "latents"), knobs(**AT_ONCE), 0, root / "out")
    text = linked((root / "out" / "map.html").read_text(encoding="utf-8"), PAGES, {1: "the army"})
    place = root / "latents" / "4" / "map.html"
    place.parent.mkdir()
    place.write_text(text, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if (binary := browser.path()) is None:
        pytest.skip("no Chromium is installed; CHROME_PATH may name one")
    with browser.opened(binary, tmp_path_factory.mktemp("profile")) as opened:
        opened.size(1280, 900)
        yield opened


def links(tab: browser.Page, within: str) -> list[str]:
    return tab.run(f"[...document.querySelectorAll({json.dumps(within + ' a')})].map((a) => a.getAttribute('href'))")


def colours(tab: browser.Page) -> set[str]:
    """The colours of the picture that stand on many of its points."""
    return set(
        tab.run(
            """(() => {
              const map = document.getElementById("map"), copy = document.createElement("canvas"), found = new Map();
              [copy.width, copy.height] = [map.width, map.height];
              const pen = copy.getContext("2d", {willReadFrequently: true});
              pen.drawImage(map, 0, 0);
              const {data} = pen.getImageData(0, 0, map.width, map.height);
              for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) {
                const name = [data[i], data[i + 1], data[i + 2]].join(" ");
                found.set(name, (found.get(name) || 0) + 1);
              }
              return [...found].filter(([, count]) => count > 20).map(([name]) => name);
            })()"""
        )
    )


def test_it_leads_to_pages_and_back(page: Path, tab: browser.Page):
    tab.open(page)
    assert links(tab, "nav") == ["../../report.html", "../index.html", "index.html"]
    tab.open(page, "#latent=1")
    assert tab.run("card.querySelector('h2').textContent") == "Latent 1" and "the army" in tab.run("card.innerText")
    assert "1.html" in links(tab, "#card")
    near = open_latents(page.parents[1]).table("neighbours", ["neighbour"], [("latent", "=", 1), ("rank", "=", 0)])
    assert near is not None
    (nearest,) = near["neighbour"].to_pylist()
    assert links(tab, "#card ol")[0] == (f"{nearest}.html" if nearest in PAGES else f"#latent={nearest}")
    tab.open(page, f"#latent={WITHOUT}")
    assert f"index.html#{WITHOUT}" in links(tab, "#card") and "make serve LAYER=4" in tab.run("card.innerText")
    tab.run("document.querySelector('#card .inline').click()")
    assert tab.run("location.hash").startswith("#family=") and "Family" in tab.run("card.innerText")
    assert tab.complaints == []


def test_alone_it_has_no_links(page: Path, tab: browser.Page):
    tab.open(page.parents[2] / "out" / "map.html", "#latent=1")
    assert tab.run("document.querySelectorAll('a').length") == 0 and tab.run("back.hidden")
    assert tab.run("card.querySelectorAll('li').length") == 8 and tab.complaints == []


def test_a_search_shows_its_hits_and_can_be_sent(page: Path, tab: browser.Page):
    def search(words: str) -> list[str]:
        tab.run(f"query.value = {json.dumps(words)}; query.dispatchEvent(new Event('input'))")
        return tab.run("[...hits.querySelectorAll('li')].map((line) => line.firstChild.textContent)")

    tab.open(page)
    before = colours(tab)
    assert search("army") == ["1"] and tab.run("location.hash") == "#q=army"
    assert len(colours(tab)) < len(before), "all others are grey"
    assert "1 of" in tab.run("count.textContent") and "with a hit: 1" in tab.run("heading.textContent")
    assert search("2")[0] == "2", "its number, then names with a 2"
    assert len(search("word10")) >= 15, "the members of a family of this name"
    assert search("rmy") == ["1"], "a part of a word, where no word begins so"
    assert search("nothing like this") == [] and "“nothing like this”" in tab.run("count.textContent")

    tab.open(page, "#q=army&colour=density")
    assert tab.run("query.value + colour.value") == "armydensity" and tab.run("hits.children.length") == 1
    assert search("") == [] and tab.run("location.hash") == "#colour=density"
    tab.open(page, "#colour=<b>&latent=x&family=99")
    assert tab.run("colour.value") == "family" and tab.run("card.hidden") and tab.complaints == []


def test_colours_say_what_they_stand_for(page: Path, tab: browser.Page):
    seen: list[Any] = []
    for name, said in (("family", "families"), ("density", "share of tokens"), ("score", "balanced accuracy")):
        tab.open(page, f"#colour={name}")
        seen.append(colours(tab))
        assert said in tab.run("legend.textContent") and "ring" in tab.run("legend.textContent")
    assert seen[0] != seen[1] and len(seen[1]) > 5, "shares of tokens differ"
    tab.open(page, "#colour=near")
    assert "Choose a latent" in tab.run("legend.textContent")
    tab.open(page, "#colour=near&latent=1")
    assert "cosine with latent 1" in tab.run("legend.textContent") and len(colours(tab)) >= 3


def test_it_works_by_keyboard_on_a_phone_and_on_paper(page: Path, tab: browser.Page):
    tab.size(390, 844)
    tab.open(page)
    picture = "document.getElementById('map').toDataURL()"
    shown = tab.run(picture)
    for key in ("+", "ArrowLeft"):
        tab.run(f"map.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
        assert tab.run(picture) != shown
    tab.run("map.dispatchEvent(new KeyboardEvent('keydown', {key: '0'}))")
    assert tab.run(picture) == shown, "0 shows all again"
    assert tab.run("document.documentElement.scrollWidth") <= 390

    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert tab.run("getComputedStyle(document.documentElement).getPropertyValue('--paper')").strip() == "#ffffff"
    assert tab.run("getComputedStyle(map).objectFit") == "contain", "it is not squeezed"
    assert not tab.run("query.offsetParent") and tab.run("families.offsetParent !== null")
    tab.call("Emulation.setEmulatedMedia", media="", features=[])
    tab.size(1280, 900)
    assert tab.complaints == []
