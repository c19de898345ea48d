"""The notebook runs from its first cell to its last, and what it shows is so."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOUR, LM = ROOT / "notebooks" / "tour.ipynb", ROOT / "data" / "lm" / "meta.json"


def cells() -> list[dict[str, Any]]:
    return json.loads(TOUR.read_text(encoding="utf-8"))["cells"]


def execute(source: str, names: dict[str, Any]) -> str:
    """A cell as a notebook runs it: what its last line gives is shown."""
    *body, last = ast.parse(source).body
    shown = isinstance(last, ast.Expr)
    exec(compile(ast.Module(body if shown else [*body, last], []), TOUR.name, "exec"), names)
    return repr(eval(compile(ast.Expression(last.value), TOUR.name, "eval"), names)) if shown else ""


def test_it_is_stored_without_what_a_run_left():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_every_name_that_a_cell_uses_is_there(tmp_path: Path):
    """The cells run only after the pipeline did; a function that is gone is seen before."""
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"))
    command = [sys.executable, "-m", "pyright", "--outputjson", f"--pythonpath={sys.executable}", str(script)]
    told = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    faults = json.loads(told.stdout)["generalDiagnostics"]
    rules = ("reportAttributeAccessIssue", "reportMissingImports", "reportUndefinedVariable")
    assert [fault["message"] for fault in faults if fault.get("rule") in rules] == []


@pytest.mark.slow
@pytest.mark.skipif(not LM.exists(), reason="the pipeline has not brought a model into this checkout")
def test_every_stage_in_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(TOUR.parent)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [execute("".join(cell["source"]), names) for cell in cells() if cell["cell_type"] == "code"]
    names["temporary"].cleanup()
    quality = names["trained"].quality.set_index("what")["fvu"]
    assert quality["SAE"] < quality["untrained"] < 1.01 and len(names["promoted"]) == 8
    assert names["merged"].latents == names["dropped"].latents == names["n"] // 2
    fvu = {name: names["notebook"].reconstruction(sae, names["rows"])["fvu"] for name, sae in names["sizes"].items()}
    assert max(fvu["before"], fvu["merged"]) < fvu["dropped"]  # refitted on these rows, half may do better than all
    assert 0 < names["costs"]["before"] < names["costs"]["zero"]
    assert names["climb"].h > float(names["objective"].heights(names["start"][None]))
    assert names["steered"] != names["before"]
    assert names["losses"][-1] < names["losses"][0] / 2 and names["by_hand"]["fvu"] < 0.5
    assert "by_hand" not in shown[-1] and "fvu" in shown[-1]
