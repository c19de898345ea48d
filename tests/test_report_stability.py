"""The report's section on latents that come again, and the targets that go by it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import LAYERS, TEST, project, read, report  # noqa: F401
from test_report_evaluated import measure

from strata.run.door import BadInput
from strata.run.files import write_json


def stability(layer: int, pooled: dict[str, Any] | None = None) -> dict[str, Any]:
    cosine = {"again": measure(0.0612), "best_cosine": measure(0.31)}
    cofiring = {"again_cofiring": measure(0.2345), "best_cofiring": measure(0.5)}
    counts = {name: [10, 20, 30, 5] for name in ("cosine", "cofiring", "random", "rows", "moved")}
    return {
        "layer": layer, "latents": 65, "seeds": [1, 2, 3], "rows": 1000, "firing": 65,
        "thresholds": {"cosine": 0.7, "cofiring": 0.7},
        **cosine, **cofiring,
        "controls": {
            "random": {"again": measure(0.0), "best_cosine": measure(0.15)},
            "rows": {"again": measure(0.0123), "best_cosine": measure(0.2)},
            "moved": {"again_cofiring": measure(0.0321), "best_cofiring": measure(0.1)},
        },
        "times": [50, 6, 5, 4],
        "histogram": {"edges": [0, 0.25, 0.5, 0.75, 1], **counts},
        **({} if pooled is None else {"pooled": pooled}),
    }  # fmt: skip


@pytest.fixture
def measured(project: Path) -> Path:  # noqa: F811
    test = {name: {**TEST, "latents": 9, "delta_ce": 0.7654} for name in ("before", "pooled", "drawn")}
    pooled = {"latents": 9, "own": 5, "trainings": [0, 0, 5, 4], "test": test, "ce_tokens": 100}
    for layer in LAYERS:
        why = {"latents": 0, "why": "no latent comes again"}
        write_json(project / "stability" / f"{layer}.json", stability(layer, why if layer == 3 else pooled))
    return project


def test_it_is_shown_beside_chance(measured: Path, monkeypatch: pytest.MonkeyPatch):
    report(monkeypatch)
    page, summary = (measured / "report.html").read_text(encoding="utf-8"), read("summary.json")
    assert page.count(">Stability</h2>") == 1 and (measured / "plots/stability.png").is_file()
    for number in ("0.061", "0.234", "0.012", "0.032", "0.765", "no latent comes again", "in all of them 4 of 65"):
        assert number in page
    assert summary["stability.9.again"] == 0.0612 and summary["stability.9.pooled.pooled.delta_ce"] == 0.7654
    assert not [name for name in summary if name.startswith("stability") and "controls" in name]


def test_where_it_did_not_run_nothing_is_shown(project: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    report(monkeypatch)
    page = (project / "report.html").read_text(encoding="utf-8")
    assert ">Stability</h2>" not in page and not (project / "plots/stability.png").exists()
    assert not [name for name in read("summary.json") if name.startswith("stability")]


@pytest.mark.parametrize(("metric", "least"), [("again", 0.25), ("again_cofiring", 0.24)])
def test_a_target_for_it_can_fail(measured: Path, monkeypatch: pytest.MonkeyPatch, metric: str, least: float):
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    targets = {**values["targets"], "enforce": True, "delta_ce": {"max": 9.0}, metric: {"min": least}}
    Path("params.yaml").write_text(yaml.safe_dump({**values, "targets": targets}))
    with pytest.raises((SystemExit, BadInput)):
        report(monkeypatch)
    lines = [line for line in read("scorecard.json")["targets"] if line["metric"] == metric]
    assert [line["pass"] for line in lines] == [False] * len(LAYERS)

    Path("params.yaml").write_text(yaml.safe_dump({**values, "targets": {**targets, metric: {"min": 0.05}}}))
    report(monkeypatch)
    assert all(line["pass"] for line in read("scorecard.json")["targets"] if line["metric"] == metric)
