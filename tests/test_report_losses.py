"""The report says beside its targets where a control is ahead of the SAE."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_report
from test_report import LAYERS, report
from test_report_evaluated import evaluated, measure

from stages.report.losses import losses
from strata.run.files import write_json

project = test_report.project  # the fixture


def findings(**changes: Any) -> Any:
    """What losses() reads, of one layer, with nothing lost."""
    nothing = {"evaluated": {}, "measured": {"explain": {}}, "causes": SimpleNamespace(steered={}), "merged": []}
    return SimpleNamespace(**nothing | changes)


def by_k(one: float, five: float) -> dict[str, Any]:
    return {"1": measure(one), "5": measure(five)}


def test_nothing_is_lost():
    ahead = {"sae": by_k(0.9, 0.9), "controls": {"residual": by_k(0.8, 0.9), "shuffled": by_k(0.95, 0.95)}}
    rules = {"latents": 9, "above": {"untrained": {"value": 0.1, "low": 0.05, "high": 0.2}}}
    steered = {"latents": [{}] * 4, "beating_all": 0.5, "twins": {"frozen_decoder": {"latents": 4, "low": 0.1}}}
    told = {"lm": {"balanced_accuracy": {"low": 0.1, "mean": 0.8, "chance": 0.5, "latents": 4}}}
    better = SimpleNamespace(layer=9, test={"after": {"fvu": 0.1}, "refitted": {"fvu": 0.2}})
    found = findings(
        evaluated={9: {"probing": ahead, "rules": rules}},
        measured={"explain": {9: told}},
        causes=SimpleNamespace(steered={9: steered}),
        merged=[better],
    )
    assert losses(found) == losses(findings()) == []


def test_each_loss_is_one_sentence():
    probing = {
        "sae": by_k(0.6, 0.8),
        "controls": {"untrained": by_k(0.7, 0.7), "residual": by_k(0.65, 0.85), "drawn": by_k(0.9, 0.9)},
    }
    rules = {"latents": 128, "above": {"frozen_decoder": {"low": -0.1}, "untrained": {"low": None}}}
    twins = {"frozen_decoder": {"latents": 4, "low": -0.5}, "frozen_encoder": {"latents": 0}}
    steered = {"latents": [{}] * 4, "beating_all": 0.25, "twins": twins}
    told = {"lm": {"balanced_accuracy": {"low": -0.04, "mean": 0.588, "chance": 0.5, "latents": 4}}}
    worse = SimpleNamespace(layer=9, test={"after": {"fvu": 0.3}, "refitted": {"fvu": 0.2}})
    found = findings(
        evaluated={9: {"probing": probing, "rules": rules}},
        measured={"explain": {9: told}},
        causes=SimpleNamespace(steered={9: steered}),
        merged=[worse],
    )
    assert losses(found) == [
        "layer 9: probes of labels: ahead of the SAE are activations (k = 1, 5); random encoder (k = 1)",
        "layer 9: token rules name the latents of the twin “frozen decoder” as well as the SAE's, as far as "
        "128 latents show",
        "layer 9: explanations in words are not shown to beat chance (0.588 against 0.5, 4 latents)",
        "layer 9: 1 of 4 steered latents beats all baselines",
        "layer 9: the twin “frozen decoder” steers as far as the SAE, as far as 4 latents show",
        "layer 9: merging latents reconstructs no better than dropping as many and refitting the decoder "
        "(0.3 against 0.2 of fvu)",
    ]


def test_the_report_says_so_first(project: Path, monkeypatch: pytest.MonkeyPatch):
    """Before the scorecard, in a box as large as that of the targets."""
    control = {k: measure(0.99) for k in ("1", "5", "all")}
    for layer in LAYERS:
        numbers = evaluated(layer)
        numbers["probing"]["controls"]["untrained"] = control
        write_json(project / "evaluate" / f"{layer}.json", numbers)
    report(monkeypatch)
    first, _, rest = Path("report.html").read_text(encoding="utf-8").partition(">Scorecard</h2>")
    assert 'class="verdict mixed"' in first and "A control is ahead" in first and "A control is ahead" not in rest
    assert first.count("probes of labels: ahead of the SAE") == len(LAYERS)
    for name in ("scorecard", "reconstruction", "evaluation"):
        assert (f'href="#{name}"' in first and f'id="{name}"' in rest) or name == "scorecard"
    assert 'href="#steering"' not in first, "a part that is not there has no link"
