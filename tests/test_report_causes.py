"""The report's section on steering: what the model writes, beside what it writes without."""

from pathlib import Path
from typing import Any

import pytest
from test_report import LAYERS, project, report  # noqa: F401

from stages.report.causes import differing, written
from strata.run.files import write_json


def text(condition: str, strength: float, prompt: str, says: str) -> dict[str, Any]:
    return {
        "condition": condition, "strength": strength, "prompt": prompt, "text": says,
        "fires": 0.5, "perplexity": 12.5, "repetition": 0.0,
    }  # fmt: skip


TEXTS = [
    text("none", 0, "In <May>", " the sun rose"),
    text("none", 0, "He said", " nothing at all"),
    text("latent", 1, "In <May>", " the sun set"),
    text("latent", 1, "He said", " nothing at all"),
    text("DiffMean", 1, "In <May>", " a moon <rose>"),
]


def test_each_text_stands_beside_that_without_steering():
    first, second = written({"written": TEXTS})
    assert (first.prompt, first.plain["text"]) == ("In <May>", " the sun rose")
    assert [str(steered.text) for steered in first.latent] == [" the sun <mark>set</mark>"]
    assert [str(steered.text) for steered in first.baselines] == [" <mark>a moon &lt;rose&gt;</mark>"]
    assert [str(steered.text) for steered in second.latent] == [" nothing at all"] and not second.baselines


@pytest.mark.parametrize(
    ("plain", "says", "marked"),
    [
        (" a b", " a b", " a b"),
        (" a b", " a x b", " a <mark>x</mark> b"),
        (" a b", "", ""),
        ("", " a\n b ", " <mark>a\n b </mark>"),
        (" a", " a \n", " a \n"),
    ],
)
def test_words_that_differ_are_marked(plain: str, says: str, marked: str):
    assert differing(plain, says) == marked


def test_the_report_shows_both(project: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    best = {"effect": 1.5, "strength": 2.0, "kl": 0.1}
    against = {"DiffMean": {"beats": False, "difference": -0.25, "low": -0.5, "high": 0.125}}
    doses = [{"strength": strength, "promoted": strength, "kl": abs(strength)} for strength in (-1.0, 0.0, 1.0)]
    latent = {
        "latent": 7, "promoted_tokens": [" May"], "written": TEXTS, "doses": {"latent": doses, "DiffMean": doses},
        "promoted": {"best": {"latent": best, "DiffMean": best}, "against": against},
    }  # fmt: skip
    layer = LAYERS[0]
    steering = {"prompts": 4, "kl": 0.5, "beating_all": 0.0, "twins": {}, "latents": [latent]}
    write_json(project / "steer_eval" / f"{layer}.json", steering)
    report(monkeypatch)
    page = (project / "report.html").read_text(encoding="utf-8")
    assert (project / f"plots/steering-{layer}-7.png").is_file()
    assert page.count("<strong>without steering</strong>") == 4, "two prompts, by the latent and by baselines"
    assert "the sun <mark>set</mark>" in page and "… In &lt;May&gt; …" in page and "<rose>" not in page
    assert "none of 1 steered latents beat all baselines" in page
