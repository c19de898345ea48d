"""The report's section on what evaluate measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_report import LAYERS, project, read, report  # noqa: F401

from strata.run.files import write_json


def measure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def evaluated(layer: int, **changes: Any) -> dict[str, Any]:
    by_k = {k: measure(0.8) for k in ("1", "2", "all")}
    near = {name: measure(0.25) for name in ("cosine", "above_0.7", "above_0.9")}
    names = ("l2_ratio", "relative_reconstruction_bias", "frequency_above_0.01", "frequency_above_0.1")
    probing = {
        "documents": 380, "tasks": 13, "sae": by_k, "labels": [],
        "controls": {**dict.fromkeys(("residual", "pca", "untrained", "shuffled"), by_k),
                     "drawn": {"1": measure(0.5), "2": measure(0.55)}},
    }  # fmt: skip
    return {
        "layer": layer,
        "seeds": 5,
        "intervals": {},
        "core": {name: measure(0.9) for name in names},
        "redundancy": {"decoder": near, "encoder": near, "controls": {"random": near}},
        "probing": probing,
        **changes,
    }


def test_what_was_evaluated_is_shown(project: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    for layer in LAYERS:
        write_json(project / "evaluate" / f"{layer}.json", evaluated(layer))
    report(monkeypatch)
    page, summary = Path("report.html").read_text(encoding="utf-8"), read("summary.json")
    assert page.count(">Evaluation</h2>") == 1 and "random encoder" in page and "13 labels, 380 documents" in page
    assert Path(f"plots/probing-{LAYERS[0]}.png").is_file()
    assert summary[f"evaluate.{LAYERS[0]}.probing.sae.1"] == 0.8
    assert summary[f"evaluate.{LAYERS[0]}.redundancy.decoder.cosine"] == 0.25
    assert not [name for name in summary if name.startswith("evaluate.") and "controls" in name]
    assert not [name for name in summary if name.endswith((".low", ".high"))]


def test_what_took_trainings_is_shown_with_its_control(project: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    more = {"meta": {"explained": measure(0.1234), "controls": {"random": {"explained": measure(0.0123)}}}}
    for layer in LAYERS:
        write_json(project / "evaluate" / f"{layer}.json", evaluated(layer, **more, absorption={"why": "was given"}))
    report(monkeypatch)
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.count("variance of directions") == page.count("was given") == len(LAYERS)
    assert ">0.123<" in page and ">0.012<" in page
    assert read("summary.json")["evaluate.9.meta.explained"] == 0.1234


def test_what_does_not_apply_is_left_out(project: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    for layer in LAYERS:
        write_json(project / "evaluate" / f"{layer}.json", evaluated(layer, core=None, probing={"why": "no label"}))
    report(monkeypatch)
    page = Path("report.html").read_text(encoding="utf-8")
    assert ">Evaluation</h2>" in page and "random encoder" not in page
    assert not list(Path("plots").glob("probing*"))
    assert "evaluate" in json.dumps(read("summary.json"))


def test_token_rules_are_shown_beside_twins(project: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    rules = {
        "latents": 128, "rows": 32768, "sae": measure(0.875), "chance": measure(0.505),
        "controls": {"frozen_decoder": measure(0.625)}, "above": {"frozen_decoder": measure(0.2468)},
    }  # fmt: skip
    for layer in LAYERS:
        write_json(project / "evaluate" / f"{layer}.json", evaluated(layer, rules=rules))
    report(monkeypatch)
    page = Path("report.html").read_text(encoding="utf-8")
    assert "token rules of" in page and page.count("0.247") == len(LAYERS) and "rules of other latents" in page
    assert read("summary.json")["evaluate.9.rules.above.frozen_decoder"] == 0.2468

    write_json(project / "evaluate" / "9.json", evaluated(9, rules={"why": "rows are documents"}))
    report(monkeypatch)
    assert Path("report.html").read_text(encoding="utf-8").count("0.247") == len(LAYERS) - 1


def test_tasks_that_others_made_are_shown(project: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    by_k = {k: measure(0.81) for k in ("1", "all")}
    row = {"auc": by_k, "f1": by_k}
    last = {
        "sae": row,
        "controls": {"residual": row, "frozen_decoder": row},
        "above": {"residual": {"1": measure(0.02)}},
    }
    tasks = {
        "tasks": 5,
        "prompts": 1500,
        "normal": {"last": last, "mean": last},
        "imbalance": {"why": "few"},
        "by_task": [],
    }
    for layer in LAYERS:
        write_json(project / "evaluate" / f"{layer}.json", evaluated(layer, tasks=tasks))
    report(monkeypatch)
    page, summary = Path("report.html").read_text(encoding="utf-8"), read("summary.json")
    assert page.count("5 tasks, 1,500 prompts") == 2 * len(LAYERS) and page.count("mean over the prompt") == len(LAYERS)
    assert page.count("<th>frozen decoder</th>") == 2 * len(LAYERS) and "uneven prompts" not in page
    assert summary["evaluate.9.tasks.normal.last.sae.auc.1"] == 0.81
    assert summary["evaluate.9.tasks.normal.mean.above.residual.1"] == 0.02
    assert not [name for name in summary if "by_task" in name]


def test_absorbed_letters_are_shown_beside_twins(project: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    numbers = {name: measure(0.4321) for name in ("absorbed", "lost", "f1", "mains")}
    found = {"words": 1234, "rows": 4321, "letters": "abcde", "probe_f1": 0.9, **numbers}
    first, second, *others = LAYERS
    made = {first: {**found, "controls": {"frozen_decoder": numbers}}, second: {"why": "a linear probe reads 2"}}
    for layer in LAYERS:
        more = {"letters": made[layer]} if layer in made else {}
        write_json(project / "evaluate" / f"{layer}.json", evaluated(layer, **more))
    report(monkeypatch)
    page, summary = Path("report.html").read_text(encoding="utf-8"), read("summary.json")
    assert page.count("the letters abcde") == 1 and "1,234 words" in page and page.count(">0.432<") == 8
    assert page.count("a linear probe reads 2") == 1
    assert summary[f"evaluate.{first}.letters.absorbed"] == 0.4321
    assert not others or f"evaluate.{others[0]}.letters.absorbed" not in summary
