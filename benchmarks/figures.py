"""The pictures of the docs, taken anew from the run of this checkout: `make figures`.

A headless Chromium opens the pages that the run wrote and those that `make serve` gives. The pictures of a sweep
(pareto.png, mlflow-compare.png) and of the reference run are of other runs than the default one, and are not taken.
"""

import base64
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import browser
from benchmarks.serving import started
from stages.report.layer import chosen
from strata.interpretation.read import open_latents
from strata.run.door import BadInput, run

REPORTS = Path("reports")
FIGURES = REPORTS / "figures"
PORT = 8766
PROMPT, MEANING, STRENGTH = "The weather in the north of England was", "money and prices", 0.8  # of live.png
EMBEDDED = 300  # seconds, in which the server has embedded all latents, also on a busy machine
WRITTEN = "[...document.querySelectorAll('.pane > [role=status]')].every(say => say.textContent.startsWith('End'))"


def main(layer: str = "9") -> None:
    """LAYER: whose latents, map and server are pictured; it is one of the run.

    Example: python -m benchmarks.figures 9
    """
    if not (REPORTS / "report.html").exists():
        raise BadInput("the pipeline has not run in this checkout; run `make`")
    if (binary := browser.path()) is None:
        raise BadInput("no Chromium is installed; CHROME_PATH may name one")

    (best,) = chosen(open_latents(Path("data/latents") / layer).statistics().to_pylist(), 1)
    pages, address = REPORTS / "latents" / layer, f"http://127.0.0.1:{PORT}"
    with (
        started(PORT, f"data/sae/{layer}"),
        TemporaryDirectory() as profile,
        browser.opened(binary, Path(profile), "file:", address) as tab,
    ):
        taken = [
            taken_of_file(tab, REPORTS / "report.html", "report", 1200, 1520),
            taken_of_file(tab, pages / f"{best}.html", "latent", 1280, 1360),
            taken_of_file(tab, pages / "index.html", "latents-index", 1280, 800),
            taken_of_file(tab, pages / "map.html", "map", 1300, 900),
            live(tab, address),
        ]
    print("\n".join(str(path) for path in taken))


def taken_of_file(tab: browser.Page, page: Path, name: str, width: int, height: int) -> Path:
    """Picture the top of a page that the run wrote."""
    tab.size(width, height)
    tab.open(page)
    return keep(tab, name)


def live(tab: browser.Page, address: str) -> Path:
    """Picture the live view: one text, and the same one steered with the latent that is nearest to MEANING."""
    tab.size(1180, 914)
    tab.visit(f"{address}/live")
    tab.wait("at('facts').textContent.includes('latents')")
    tab.run(f"document.querySelector('textarea').value = '{PROMPT}'; at('tokens').value = 24; at('beside').click()")

    # In the second text: look for the meaning, and steer with the first hit.
    tab.run(f"[...document.querySelectorAll('input[type=search]')].at(-1).value = '{MEANING}'")
    tab.run("[...document.querySelectorAll('form')].at(-1).requestSubmit()")
    steer = "[...document.querySelectorAll('.pane:last-child button')].find(button => button.textContent === 'Steer')"
    tab.wait(f"{steer} !== undefined", EMBEDDED)
    tab.run(f"{steer}.click()")
    tab.run(f"slider = document.querySelector('input[type=range]'); slider.value = {STRENGTH}; slider.oninput()")

    tab.run("at('both').click()")
    tab.wait(WRITTEN)
    return keep(tab, "live")


def keep(tab: browser.Page, name: str) -> Path:
    """Write what the tab shows as a picture of the docs."""
    picture = tab.call("Page.captureScreenshot", format="png")["data"]
    path = FIGURES / f"{name}.png"
    path.write_bytes(base64.b64decode(picture))
    return path


if __name__ == "__main__":
    run(main)
