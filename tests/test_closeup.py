"""The latents that the report shows up close: which ones, and that their texts stay text."""

from pathlib import Path
from typing import Any

from planted import EVIL, planted

from stages.report.closeup import CONTEXTS, best, closeup
from stages.report.layer import read_layer, worst
from stages.report.templates import environment
from strata.interpretation.read import open_latents


def note(value: float | None) -> dict[str, Any]:
    return {"balanced_accuracy": value}


NOTES = {1: note(0.9), 2: note(None), 3: note(0.8), 4: note(0.5), 5: note(0.9), 6: note(0.45), 7: note(0.5)}


def test_the_best_by_score_and_then_in_their_order():
    ids = [7, 5, 4, 3, 2, 1, 6, 8]  # 8 has no explanation, 2 no score
    assert best(ids, NOTES, 2) == [5, 1] and best(ids, NOTES, 9) == [5, 1, 3, 7, 4, 6]
    assert best([2, 8], NOTES, 3) == []


def test_the_worst_by_score_of_those_that_are_kept_and_the_important_come_first():
    statistics = [{"latent": j, "kept": j != 6, "importance": float(j)} for j in range(9)]
    assert worst(statistics, NOTES, 3) == [7, 4, 3]
    assert worst(statistics, {}, 3) == []


def test_a_layer_up_close(tmp_path: Path):
    planted(tmp_path / "9", 9)
    layer = read_layer(open_latents(tmp_path / "9"), 10)
    found = closeup(layer)
    assert found is not None and found.layer == 9
    last = worst(layer.statistics, layer.notes)
    first = best([latent for latent in layer.ids if latent not in last], layer.notes)
    assert [[latent.row["latent"] for latent in end] for end in found[1:]] == [first, last]
    assert all(0 < len(latent.contexts) <= CONTEXTS for latent in found.best)
    page = environment().get_template("closeup.html.j2").render(closeups=[found])
    assert "explained best" in page and f'href="latents/9/{first[0]}.html"' in page
    assert '<mark class="a10 peak"' in page, "the strongest token of the strongest context"
    assert not any(text in page for text in EVIL[:2] + EVIL[4:5]), "a text is never markup"
    assert not environment().get_template("closeup.html.j2").render(closeups=[]).strip()
