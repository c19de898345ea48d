"""Points and fronts of experiments: by hand, by brute force, and of real experiments of DVC."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml

from apps.pareto.page import render
from apps.pareto.pictures import picture
from apps.pareto.points import Point, by_layer, front, parse, read_points, table
from src import pareto
from strata.run.door import BadInput


def experiment(
    name: str, k: int, latents: int, numbers: dict[str, Any], state: str | None = "success"
) -> dict[str, Any]:
    params = {"train": {"k": k, "latents": latents, "lr": 0.004}, "layers": [9], "merge": {"run": k > 32}}
    data = {
        "params": {"params.yaml": {"data": params}},
        "metrics": {"reports/summary.json": {"data": numbers}},
    }
    return {"name": name, "revs": [{"data": data}], "executor": state and {"state": state}}


def numbers(l0: float, fvu: float, ce: float | None, layer: int = 9) -> dict[str, Any]:
    return {
        f"train.{layer}.l0": l0,
        f"train.{layer}.fvu_inlier": fvu,
        f"train.{layer}.delta_ce": ce,
        "targets.failed": 1,
    }


SHOWN = [
    {"rev": "workspace", "data": {}},
    {
        "rev": "a1f27b5",
        "experiments": [
            experiment("c", 64, 2048, numbers(64, 0.13, 0.85)),
            experiment("a", 32, 2048, numbers(32, 0.16, 1.01)),
            experiment("b", 32, 4096, numbers(33, 0.15, 1.05), None),
            experiment("d", 64, 4096, numbers(65, 0.14, 0.80)),
            experiment("busy", 96, 4096, numbers(80, 0.01, 0.1), "running"),
            experiment("broken", 96, 4096, {}, "failed"),
            {"name": "waits", "revs": [{"data": None}], "executor": {"state": "queued"}},
        ],
    },
]


def test_points_are_the_finished_experiments_by_curve():
    found = read_points(SHOWN)
    assert [(point.experiment, point.curve, point.l0) for point in found] == [
        ("a", "latents 2048", 32), ("c", "latents 2048", 64), ("b", "latents 4096", 33), ("d", "latents 4096", 65),
    ]  # fmt: skip
    assert found[0].knobs == {"train.k": "32", "train.latents": "2048"}  # merge.run changes no SAE
    assert found[0].costs == {"fvu_inlier": 0.16, "delta_ce": 1.01}


def test_the_front_by_hand():
    found = read_points(SHOWN)
    assert [point.experiment for point in front(found, "fvu_inlier")] == ["a", "b", "c"]
    assert [point.experiment for point in front(found, "delta_ce")] == ["a", "d"]  # c is hardly sparser than d
    lines = table(found).splitlines()
    assert lines[0] == "experiment,layer,train.k,train.latents,l0,fvu_inlier,delta_ce,front_fvu_inlier,front_delta_ce"
    assert lines[1:] == [
        "a,9,32,2048,32.0,0.16,1.01,1,1", "c,9,64,2048,64.0,0.13,0.85,1,0", "b,9,32,4096,33.0,0.15,1.05,1,0",
        "d,9,64,4096,65.0,0.14,0.8,0,1",
    ]  # fmt: skip


def test_the_front_by_brute_force():
    random = np.random.default_rng(0)
    values = random.integers(0, 12, (60, 2)).tolist()  # with ties
    points = [
        Point(str(i), 0, {}, "all", float(l0), {"fvu_inlier": float(cost), "delta_ce": None})
        for i, (l0, cost) in enumerate(values)
    ]

    def beaten(i: int) -> bool:
        return any(a <= values[i][0] and b <= values[i][1] and [a, b] != values[i] for a, b in values)

    found = {(point.l0, point.costs["fvu_inlier"]) for point in front(points, "fvu_inlier")}
    assert found == {tuple(map(float, values[i])) for i in range(60) if not beaten(i)}
    assert front(points, "delta_ce") == []


def test_what_is_hardly_sparser_and_costs_more_is_not_on_the_front():
    """Two SAEs of nearly the same l0 made the front of a sweep zigzag."""
    found = read_points([
        {"experiments": [
            experiment("worse", 64, 2048, numbers(64.3, 0.14, None)),
            experiment("better", 64, 4096, numbers(64.5, 0.13, None)),
        ]}
    ])  # fmt: skip
    assert [point.experiment for point in front(found, "fvu_inlier")] == ["better"]


def test_the_run_of_the_commit_is_beside_its_sweep():
    own = experiment("", 80, 4096, numbers(80, 0.08, 0.3))["revs"][0]["data"]
    shown = [SHOWN[0], {**SHOWN[1], "rev": "a1f27b5c", "name": "main", "data": own}]
    found = read_points(shown)
    (point,) = [point for point in found if point.experiment == "main"]
    assert point.curve == "main (this commit)" and point.l0 == 80 and point.knobs["train.k"] == "80"
    assert [other for other in found if other is not point] == read_points(SHOWN)
    assert point in front(found, "fvu_inlier")
    with pytest.raises(BadInput, match="no experiment of this commit is finished"):
        read_points([{"rev": "a1f27b5c", "name": "main", "data": own}])


def test_seeds_are_one_point_with_what_they_span():
    runs = [experiment(f"s{seed}", 32, 2048, numbers(32 + seed, 0.1 + seed / 50, None)) for seed in range(3)]
    for seed, run in enumerate(runs):
        run["revs"][0]["data"]["params"]["params.yaml"]["data"]["seed"] = seed
    (point,) = read_points([{"experiments": runs}])
    assert point.experiment == "s0, s1, s2" and point.l0 == 33 and point.knobs == {}
    assert point.costs == {"fvu_inlier": pytest.approx(0.12), "delta_ce": None}
    assert point.bounds == {"fvu_inlier": (0.1, pytest.approx(0.14))}
    assert "fvu_inlier_low,fvu_inlier_high" in table([point]) and "[0.1 to 0.14]" in render(
        [point], {9: picture([point])}
    )


def test_each_layer_has_its_own_front():
    both = numbers(32, 0.16, 1.0) | numbers(40, 0.3, 2.0, layer=3)
    found = read_points([{"experiments": [experiment("a", 32, 2048, both)]}])
    assert [(point.layer, point.curve) for point in found] == [(3, "all"), (9, "all")]
    assert [line[-4:] for line in table(found).splitlines()[1:]] == [",1,1"] * 2


def test_picture_and_page_repeat_and_ask_for_nothing():
    found = read_points(SHOWN)
    png = picture(found)
    assert png == picture(found) and png[:4] == b"\x89PNG"
    page = render(found, {9: png})
    assert page == render(found, {9: png}) and "<td>latents" not in page and "4096" in page
    assert page.count('class="front"') == 5 and "http" not in page.replace("http-equiv", "")
    hostile = read_points([{"experiments": [experiment("<script>", 32, 2048, numbers(32, 0.1, None))]}])
    page = render(hostile, {9: picture(hostile)})
    assert "<script>" not in page and "delta_ce" not in page


def test_without_a_language_model_there_is_one_panel(tmp_path: Path):
    sizes = []
    for ce in (None, 1.0):
        found = read_points([{"experiments": [experiment("a", 32, 2048, numbers(32, 0.1, ce))]}])
        (tmp_path / "p.png").write_bytes(picture(found))
        sizes.append(matplotlib.image.imread(tmp_path / "p.png").shape[1])
    assert sizes[1] == 2 * sizes[0]


@pytest.mark.parametrize("shown", [[], [{"experiments": None}], [{"experiments": SHOWN[1]["experiments"][4:]}]])
def test_nothing_to_draw_is_said(shown: list[dict[str, Any]]):
    with pytest.raises(BadInput, match="no experiment of this commit is finished; queue some"):
        read_points(shown)
    with pytest.raises(BadInput, match="did not print JSON"):
        parse("Traceback")


STAGE = """
import json, yaml
train = yaml.safe_load(open("params.yaml"))["train"]
k, latents = train["k"], train["latents"]
found = {"train.9.l0": k + 0.5, "train.9.fvu_inlier": 1 / k, "train.9.delta_ce": 8 / k + latents}
json.dump(found, open("s.json", "w"))
"""


@pytest.mark.parametrize("target", ["out/front", "out/front/"])
def test_a_folder_may_end_in_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str
):
    monkeypatch.chdir(tmp_path)
    shown = subprocess.CompletedProcess([], 0, json.dumps(SHOWN), "")
    monkeypatch.setattr(pareto.subprocess, "run", lambda *_, **__: shown)
    monkeypatch.setattr(pareto, "picture", lambda _: b"png")
    pareto.main(target)
    assert sorted(str(path) for path in Path().rglob("*.*")) == ["out/front.csv", "out/front.html", "out/front/9.png"]
    assert capsys.readouterr().out == "4 SAEs: out/front.html, out/front.csv and out/front/\n"


@pytest.mark.slow
def test_a_sweep_of_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The sweep of docs/experiments.md on a project of one quick stage: queued, run and drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "true")

    def call(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    with pytest.raises(BadInput, match="`dvc exp show` ended with: ERROR"):
        pareto.main()
    metrics = "reports/summary.json"
    stage = {
        "cmd": "python stage.py",
        "deps": ["stage.py"],
        "params": ["train"],
        "metrics": [{metrics: {"cache": False}}],
    }
    (tmp_path / "stage.py").write_text(STAGE.replace("s.json", metrics))
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"train": {"k": 1, "latents": 8}}))
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / ".gitkeep").touch()
    dvc = (sys.executable, "-m", "dvc")
    call("git", "init", "-q")
    call(*dvc, "init", "-q")
    for key in ("user.name", "user.email"):
        call("git", "config", key, "someone@example.org")
    call("git", "add", ".")
    call("git", "commit", "-qm", "begin")
    call(*dvc, "exp", "run", "--queue", "-S", "train.k=2,4")
    call(*dvc, "exp", "run", "--run-all")
    pareto.main()
    assert capsys.readouterr().out.startswith("2 SAEs: reports/pareto.html")
    found = read_points(json.loads(call(*dvc, "exp", "show", "--json")))
    assert {(point.curve, point.l0) for point in found} == {("all", 2.5), ("all", 4.5)}
    assert list(by_layer(found)) == [9] and Path("reports/pareto/9.png").stat().st_size > 1000
    call(*dvc, "plots", "show", "reports/pareto")
    assert list(Path("dvc_plots/static").glob("*pareto_9.png"))
