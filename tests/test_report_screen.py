"""The report on a phone and in the dark, with a browser."""

from pathlib import Path

import pytest
from test_report import LAYERS, project, report, twins  # noqa: F401
from test_report_evaluated import evaluated
from test_report_stability import stability

from benchmarks import browser
from strata.run.files import write_json


def test_it_fits_a_phone_and_is_dark_in_the_dark(
    project: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
):
    if (binary := browser.path()) is None:
        pytest.skip("no Chromium is installed; CHROME_PATH may name one")
    for layer in LAYERS:
        write_json(project / "evaluate" / f"{layer}.json", evaluated(layer))
        write_json(project / "stability" / f"{layer}.json", stability(layer))
    beside = twins(LAYERS[-1])
    beside["twins"]["frozen_encoder"] = beside["twins"]["frozen_decoder"]
    write_json(project / "controls" / f"{LAYERS[-1]}.json", beside)
    report(monkeypatch)

    light = {}
    with browser.opened(binary, tmp_path_factory.mktemp("profile")) as page:
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.size(390, 900)
            page.open(project / "report.html")
            page.run("document.querySelectorAll('details').forEach(part => part.open = true)")
            assert page.run("document.documentElement.scrollWidth") <= 390
            wide = "[...document.querySelectorAll('.scroll, figure')].filter(e => e.scrollWidth > e.clientWidth)"
            assert page.run(f"{wide}.map(e => e.innerText.slice(0, 40)).join('; ')") == ""
            colour = page.run("getComputedStyle(document.body).backgroundColor")
            light[scheme] = sum(int(part) for part in colour[4:-1].split(","))
            assert not page.complaints
    assert light["dark"] < 150 < 600 < light["light"]
