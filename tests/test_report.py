"""The report: what it judges, what it says loudly, and that its bytes repeat."""

import base64
import copy
import hashlib
import html
import json
import math
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from planted import EVIL, LATENTS, explained, planted

from stages.report.families import SITE
from stages.report.glossary import GLOSSARY
from stages.report.page import bound, embedded, score
from stages.report.scorecard import failures, scorecard, summary
from stages.train.read import Result, read_history, read_result
from strata.pages.readable import number, visible
from strata.run.door import BadInput
from strata.run.files import write_json, write_text
from strata.run.params import check
from strata.verdict.targets import Targets

LAYERS = [3, 6, 9]
ROOT = Path(__file__).resolve().parents[1]
TEST = {
    "mse": 0.0046,
    "fvu": 0.043,
    "fvu_inlier": 0.09,
    "l0": 63.8,
    "dead": 0.001,
    "cosine": 0.951,
    "ce_clean": 3.91,
    "ce_sae": 4.22,
    "ce_zero": 11.0,
    "ce_mean": 9.02,
    "ce_recovered": 0.9563,
    "ce_recovered_mean": 0.9393,
    "delta_ce": 0.31,
    "kl": 0.274,
}
CONTROLS = {
    "mean": TEST | {"mse": 0.106, "fvu": 1.0, "fvu_inlier": 1.0, "l0": 0.0, "ce_recovered": 0.28, "delta_ce": 5.11},
    "pca": TEST | {"mse": 0.0084, "fvu_inlier": 0.21, "l0": 64.0, "ce_recovered": 0.93, "delta_ce": 1.3},
    "untrained": TEST | {"mse": 0.31, "fvu": 2.9, "fvu_inlier": 3.4, "ce_recovered": 0.02, "delta_ce": 6.95},
}


def measured(layer: int) -> dict[str, Any]:
    """What train writes for a layer, with plausible numbers."""
    counts = [
        round(900 * math.exp(-(((edge + 1.7 + layer / 20) / 0.45) ** 2)) + 60 * (edge > -3.5)) for edge in edges()[:-1]
    ]
    return copy.deepcopy(
        {
            "layer": layer,
            "model": {
                "name": "gemma-3-270m",
                "revision": None,
                "fingerprint": "f1",
                "hook": "resid_post",
                "width": 640,
            },
            "corpus": "c1",
            "weights": f"w{layer}",
            "curve": hashlib.sha256(history(layer).encode()).hexdigest(),
            "rule": "batchtopk",
            "latents": 4096,
            "k": 64,
            "batch_size": 1024,
            "epochs": 5,
            "rows": {"train": 160000, "validation": 20000, "test": 20000, "all": 200000, "ce_tokens": 4000},
            "test": TEST | {"mse": TEST["mse"] * layer / 9, "delta_ce": 0.31 + abs(layer - 6) * 0.03},
            "controls": CONTROLS,
            "outliers": {
                "rows": 203,
                "share_of_rows": 0.001015,
                "share_of_variance": 0.4127,
                "tokens": [{"token": token, "count": 90 // (place + 1)} for place, token in enumerate(TOKENS)],
            },
            "density": {"log10_edges": edges(), "counts": counts},
            "best": {"step": 700, "score": 0.09},
        }
    )


TOKENS = ["\n", "<b>&", "The", " of", "▁in", "。", '"', "==", "'", "\t", "( ", "1", "a very long token of many letters"]


def edges() -> list[float]:
    return [round(-4.5 + 0.1 * step, 1) for step in range(46)]


def history(layer: int) -> str:
    """A history as CSV: validation at every tenth point only."""
    lines = ["step,tokens,lr,loss,mse,fvu,l0,dead,validation_fvu,validation_l0,validation_dead,score"]
    for step in range(0, 800, 8):
        fvu = 0.04 + 0.9 * math.exp(-step / (60 + 6 * layer)) + 0.004 * math.sin(step)
        l0 = 64 + (300 + 30 * layer) * math.exp(-step / 30)
        dead = max(0.0, 0.02 * layer * math.exp(-(((step - 120) / 90) ** 2)))
        validation = f"{fvu * 1.06},{l0},{dead * 0.9},{fvu * 1.06}" if step % 80 == 0 else ",,,"
        lines.append(f"{step},{step * 2048},0.003,{fvu * 1.1},{fvu / 10},{fvu},{l0},{dead},{validation}")
    return "\n".join(lines) + "\n"


def write_layers(folder: Path, changes: dict[int, Any] | None = None) -> Path:
    for layer in LAYERS:
        write_json(folder / f"{layer}.json", (changes or {}).get(layer, measured(layer)))
        write_text(folder / f"{layer}.csv", history(layer))
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with this project's params.yaml and three layers' measurements."""
    write_text(tmp_path / "params.yaml", (ROOT / "params.yaml").read_text(encoding="utf-8"))
    write_layers(tmp_path / "train")
    after = ("controls", "stability", "interpret", "explain", "cluster", "merge", "invert", "steer_eval", "evaluate")
    for layer in range(18):  # as `interpret.run: false` leaves them
        for stage in after:
            write_json(tmp_path / stage / f"{layer}.json", {"skipped": True})
    write_json(tmp_path / "tune" / "trials.json", {"skipped": True})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "report",
        "tune",
        "train",
        "controls",
        "stability",
        "interpret",
        "explain",
        "cluster",
        "merge",
        "invert",
        "steer_eval",
    ]
    words += ["evaluate", "latents", "explained", "clusters", "labels.yaml", "scorecard.json", "summary.json"]
    words += ["report.html", "plots", "pages"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_module("src.report", run_name="__main__")


def read(name: str) -> Any:
    return json.loads(Path(name).read_text(encoding="utf-8"))


def outputs() -> dict[str, bytes]:
    files = ["scorecard.json", "summary.json", "report.html", *sorted(map(str, Path("plots").iterdir()))]
    return {name: Path(name).read_bytes() for name in files}


def set_params(section: str, **values: Any) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def test_texts_longer_than_the_sentence_model_reads_are_told_beside_the_text(project: Path, monkeypatch):
    unread = {"texts": 17, "total": 1200, "tokens": 3456, "most": 256}
    write_layers(project / "train", {layer: {**measured(layer), "unread": unread} for layer in LAYERS})
    report(monkeypatch)
    said = "17 of 1,200 documents are longer than the 256 tokens that the sentence model reads: 3,456 tokens"
    assert said in Path("report.html").read_text(encoding="utf-8")
    write_layers(project / "train")
    report(monkeypatch)
    assert "are longer than" not in Path("report.html").read_text(encoding="utf-8")


def test_everything_is_written_and_repeats_bit_for_bit(project: Path, monkeypatch: pytest.MonkeyPatch):
    report(monkeypatch)
    first = outputs()
    assert {name for name in first if name.endswith(".png")} == {
        f"plots/{name}.png" for name in ("controls", "dead", "density", "fvu", "l0")
    }
    report(monkeypatch)
    assert outputs() == first
    assert not list(project.rglob("*.tmp"))


def test_the_scorecard_counts_and_names(project: Path, monkeypatch: pytest.MonkeyPatch):
    report(monkeypatch)
    card = read("scorecard.json")
    assert (card["passed"], card["failed"]) == (18, 0)
    assert card["targets"][0] == {
        "layer": 3, "metric": "mse", "value": TEST["mse"] * 3 / 9, "min": None, "max": 0.01, "pass": True,
    }  # fmt: skip
    assert {"layer": 9, "control": "pca", "fails": ["fvu_inlier", "ce_recovered", "delta_ce"]} in card[
        "controls_failing"
    ]
    assert len(card["controls_failing"]) == 9
    assert len(card["controls"]) == 54


def test_the_summary_is_flat(project: Path, monkeypatch: pytest.MonkeyPatch):
    report(monkeypatch)
    numbers = read("summary.json")
    assert numbers["train.9.fvu_inlier"] == 0.09
    assert numbers["train.9.best_step"] == 700
    assert (numbers["targets.passed"], numbers["targets.failed"], numbers["controls.passing"]) == (18, 0, 0)
    assert all(isinstance(value, int | float) for value in numbers.values())


def test_tuning_has_its_section_and_its_numbers(project: Path, monkeypatch: pytest.MonkeyPatch):
    report(monkeypatch)
    assert ">Tuning</h2>" not in Path("report.html").read_text(encoding="utf-8")
    parts = {"score": 0.12, "fvu": 0.11, "fvu_inlier": 0.14, "l0": 80.0, "dead": 0.0, "curve": [], "reason": None}
    trials = [
        {"trial": 0, "kind": "params", "knobs": {"lr": 0.004, "rule": "batchtopk", "flag": False}, **parts},
        {"trial": 1, "kind": "random", "knobs": {"lr": 0.0123456, "rule": "<topk>", "flag": True}, **parts},
        {"trial": 2, "kind": "model", "knobs": {"lr": 1.0, "rule": "topk", "flag": True}, **parts},
    ]
    trials[1]["score"], trials[2]["score"] = 0.1, None
    found = {"layer": 9, "sampler": "gp", "rows": {"train": 1000, "validation": 100}, "epochs": 1, "best": 1}
    write_json(project / "tune" / "trials.json", {**found, "from_tune": ["lr"], "space": {}, "trials": trials})
    (project / "tune" / "convergence.png").write_bytes(b"picture")
    report(monkeypatch)
    page = Path("report.html").read_text(encoding="utf-8")
    assert ">Tuning</h2>" in page and "Trial 1 is the best: 0.1, against 0.12" in page and "1 failed." in page
    assert "0.0123" in page and "&lt;topk&gt;" in page and ">true<" in page and ">false<" in page
    assert (page.count("as tuned"), page.count("as in params.yaml")) == (1, 2)
    assert base64.b64encode(b"picture").decode() in page and "What the score would be along" not in page
    numbers = read("summary.json")
    assert (numbers["tune.score"], numbers["tune.params_score"], numbers["tune.failed"]) == (0.1, 0.12, 1)
    assert numbers["tune.best.lr"] == 0.0123456 and numbers["tune.best_trial"] == 1


def test_the_page_is_self_contained(project: Path, monkeypatch: pytest.MonkeyPatch):
    report(monkeypatch)
    page = Path("report.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?://|<script|<link|@import", page)
    assert page.count("data:image/png;base64,") == 5
    assert "All 18 targets pass" in page
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page, "a token is text, not markup"
    assert "fails" not in page.split(">Scorecard</h2>")[0].replace("control fails at least one", "")
    for word in ("<code>f1</code>", "<code>c1</code>", "<code>w3</code>", "<code>w9</code>"):
        assert page.count(word) == 1, "what was run is named by its hashes"
    for word in ("gemma-3-270m", "batchtopk", "resid_post", "160,000", "4,096", "package:gensim-wikipedia"):
        assert word in page
    assert all(entry.meaning in html.unescape(page) for entry in GLOSSARY.values())


def test_the_page_says_what_it_is_of_and_its_contents_lead_there(project: Path, monkeypatch: pytest.MonkeyPatch):
    report(monkeypatch)
    page = Path("report.html").read_text(encoding="utf-8")
    assert "<title>Sparse autoencoders: gemma-3-270m, layers 3, 6, 9</title>" in page
    assert "f1 · c1 · w3 w6 w9" in page, "the hashes of model, text and SAEs, in short"
    links = re.findall(r'href="#([^"]+)"', page)
    assert len(links) == 4 and all(f'id="{link}"' in page for link in links)


def test_letters_are_as_large_in_every_picture(project: Path, monkeypatch: pytest.MonkeyPatch):
    report(monkeypatch)
    page = Path("report.html").read_text(encoding="utf-8")
    sizes = re.findall(r'base64,([^"]+)" alt="[^"]*" width="(\d+)" height="(\d+)"', page)
    assert len(sizes) == 5
    for png, width, height in sizes:
        assert (int(width), int(height)) == embedded(base64.b64decode(png))[1:]
        assert int(width) == 336, "as wide as a phone's column"


def test_a_level_curve_is_not_drawn(project: Path, monkeypatch: pytest.MonkeyPatch):
    for layer in LAYERS:
        lines = history(layer).splitlines()
        level = [",".join([*cells[:6], "64", *cells[7:9], cells[9] and "64.1", *cells[10:]])
                 for cells in (line.split(",") for line in lines[1:])]  # fmt: skip
        text = "\n".join([lines[0], *level]) + "\n"
        write_text(project / "train" / f"{layer}.csv", text)
        curve = hashlib.sha256(text.encode()).hexdigest()
        write_json(project / "train" / f"{layer}.json", measured(layer) | {"curve": curve})
    report(monkeypatch)
    assert not Path("plots/l0.png").exists() and Path("plots/dead.png").exists()
    assert "has no picture: it stays what the rule fixes" in Path("report.html").read_text(encoding="utf-8")


def test_the_most_important_latents_are_listed_and_linked(project: Path, monkeypatch: pytest.MonkeyPatch):
    report(monkeypatch)
    assert ">Latents</h2>" not in Path("report.html").read_text(encoding="utf-8"), "none was interpreted"
    for layer in (3, 9):
        explained(Path(f"explained/{layer}"), planted(Path(f"latents/{layer}"), layer))
        write_json(Path(f"interpret/{layer}.json"), {"layer": layer, "dead": 1})
    echoing = {"layer": 9, "named": 38, "lm": {"latents": 4, "echoed": 3}}
    write_json(Path("explain/9.json"), echoing)
    report(monkeypatch)
    page = Path("report.html").read_text(encoding="utf-8")
    links = re.findall(r'href="latents/([^"]+)"', page)
    assert {"index.html", "3/index.html", "9/index.html", "9/0.html"} <= set(links)
    assert len(links) == 1 + 2 * (1 + 5 + 3 + 3), "all layers; of each its index, five latents, three at either end"
    assert all((Path("pages") / link).exists() for link in links)
    assert "latent 1 &#34; onmouseover" in page, "an explanation is text, not markup"
    assert "Layer 9: 3 of 4 replies of the explaining model only repeat" in page
    assert read("summary.json")["explain.9.lm.echoed"] == 3


def test_families_are_shown_and_selected_latents_have_a_page(project: Path, monkeypatch: pytest.MonkeyPatch):
    least = LATENTS - 1
    set_params("report", pages=3)
    explained(Path("explained/9"), planted(Path("latents/9"), 9))
    write_json(Path("interpret/9.json"), {"layer": 9, "dead": 1})
    folder = Path("clusters/9")
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"cluster": np.zeros(LATENTS, np.int32)}), folder / "latents.parquet")
    family = {"cluster": [0], "name": ["all"], "size": [LATENTS], "medoid": [0]}
    pq.write_table(pa.table(family), folder / "clusters.parquet")
    family = {"cluster": [0], "name": ["all"], "size": [LATENTS], "medoid": [0]}
    pq.write_table(pa.table(family), folder / "clusters.parquet")
    write_json(folder / "selected.json", {"latents": [{"latent": least}]})
    write_json(folder / "meta.json", {"layer": 9, "latents": LATENTS, "files": {}})
    (folder / "map.png").write_bytes(b"\x89PNG")
    write_text(folder / "map.html", f"<!doctype html>{SITE}")
    quality = {"silhouette": 0.04, "davies_bouldin": 2.8, "calinski_harabasz": None, "noise_ratio": 0.25}
    trust = {"bootstrap": {"ari": 0.74}, "reseed": None, "chance": {"ari": 0.0}}
    numbers = {
        "layer": 9, "clusters": 819, "largest": 189, "selected": 1, "parameters": {"method": "agglomerative"},
        "quality": quality, "stability": trust,
    }  # fmt: skip
    write_json(Path("cluster/9.json"), numbers)
    report(monkeypatch)
    assert (Path("pages/9") / f"{least}.html").exists()
    linked = Path("pages/9/map.html").read_text(encoding="utf-8")
    told = json.loads(linked.partition('id="site">')[2].partition("<")[0])
    assert told["pages"] == [0, 1, 2, least]
    assert told["names"] == {"0": f"words {EVIL[0]}"}, "in the words of a language model, which cluster lacks"
    page = Path("report.html").read_text(encoding="utf-8")
    assert "Families of latents" in page and "819" in page and "25 %" in page and "0.74" in page
    assert 'href="latents/9/map.html"' in page and page.count("data:image/png;base64,") == 6
    found = read("summary.json")
    assert (found["cluster.9.clusters"], found["cluster.9.stability.bootstrap.ari"]) == (819, 0.74)


def test_enforce_fails_after_writing_and_names_what_failed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    bad = measured(6)
    bad["test"] |= {"delta_ce": 0.52, "l0": 40.0}
    write_layers(project / "train", {6: bad})
    report(monkeypatch)  # not enforced
    assert read("summary.json")["targets.failed"] == 2
    assert "2 of 18 targets fail" in Path("report.html").read_text(encoding="utf-8")

    set_params("targets", enforce=True)
    Path("scorecard.json").unlink()
    with pytest.raises(SystemExit) as end:
        report(monkeypatch)
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert "layer 6: l0 is 40, below its min 50; layer 6: delta_ce is 0.52, above its max 0.5" in said
    assert len(outputs()) == 8


def test_a_layer_with_nothing_to_steer_has_no_section(project: Path, monkeypatch: pytest.MonkeyPatch):
    write_json(project / "steer_eval" / f"{LAYERS[0]}.json", {"prompts": 4, "kl": 0.5, "latents": []})
    report(monkeypatch)
    assert ">Steering</h2>" not in (project / "report.html").read_text(encoding="utf-8")


def test_a_control_that_passes_everything_is_a_loud_warning(project: Path, monkeypatch: pytest.MonkeyPatch):
    loose = measured(3)
    loose["controls"]["pca"] = dict(loose["test"])
    write_layers(project / "train", {3: loose})
    report(monkeypatch)
    assert {"layer": 3, "control": "pca", "fails": []} in read("scorecard.json")["controls_failing"]
    assert read("summary.json")["controls.passing"] == 1
    page = Path("report.html").read_text(encoding="utf-8")
    assert "Warning: the control “pca” passes every target on layer 3" in page
    assert "And each control fails" not in page


def test_without_a_language_model_cross_entropy_is_null(project: Path, monkeypatch: pytest.MonkeyPatch):
    def mute(values: dict[str, Any]) -> None:
        values.update({name: None for name in values if name.startswith(("ce_", "delta_ce", "kl"))})

    layers = {layer: measured(layer) for layer in LAYERS}
    for values in layers.values():
        for part in (values["test"], *values["controls"].values()):
            mute(part)
    write_layers(project / "train", layers)
    report(monkeypatch)
    card = read("scorecard.json")
    assert (card["passed"], card["failed"]) == (12, 0)
    assert [line["pass"] for line in card["targets"] if line["metric"] == "delta_ce"] == [None] * 3
    assert "train.9.delta_ce" not in read("summary.json"), "DVC warns of a null metric"
    assert "fvu_inlier" in Path("report.html").read_text(encoding="utf-8")


def test_one_layer_and_eighteen_are_drawn(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch):
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    monkeypatch.setattr(sys.modules[__name__], "LAYERS", list(range(18)))
    write_layers(project / "train")
    for layers in ([9], list(range(18))):
        Path("params.yaml").write_text(yaml.safe_dump(params | {"layers": layers}), encoding="utf-8")
        report(monkeypatch)
        assert read("summary.json")["targets.passed"] + read("summary.json")["targets.failed"] == 6 * len(layers)


def test_what_is_missing_or_broken_is_named(project: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadInput, match=r"train/12\.json is missing"):
        read_result(Path("train/12.json"))
    with pytest.raises(BadInput, match=r"train/12\.json is missing"):
        read_history(Path("train/12.csv"))
    whole, path = history(9), Path("train/9.csv")
    for damaged in ("", whole[:-40], whole.rpartition("\n50,")[0] + "\n", whole.replace("0.5", "0.6", 1)):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(BadInput, match=r"train/9\.csv does not have the hash that was noted"):
            read_history(path)
    path.write_text(much := "step,loss\n1,much\n", encoding="utf-8")
    write_json(Path("train/9.json"), measured(9) | {"curve": hashlib.sha256(much.encode()).hexdigest()})
    with pytest.raises(BadInput, match=r"train/9\.csv is not a table of numbers"):
        read_history(path)
    write_json(Path("train/9.json"), {key: value for key, value in measured(9).items() if key != "test"})
    with pytest.raises(BadInput, match=r"9\.json\.test is missing"):
        read_result(Path("train/9.json"))


def test_history_leaves_out_what_was_not_measured(project: Path):
    rows = read_history(Path("train/9.csv"))
    assert len(rows) == 100
    assert "validation_fvu" in rows[0] and "validation_fvu" not in rows[1]
    assert rows[1]["tokens"] == 8 * 2048


def test_numbers_and_bounds_are_readable():
    assert [number(value) for value in (0.0041, 63.81, 160000, 0.95, 0, None, 12345.6, 100.0, 0.00001234)] == [
        "0.0041", "63.8", "160,000", "0.95", "0", "–", "12,346", "100", "1.23 × 10⁻⁵",
    ]  # fmt: skip
    assert [number(value) for value in (-0.0, -0.0202, -3, -6.42e-06)] == ["0", "−0.0202", "−3", "−6.42 × 10⁻⁶"]
    assert [score(value) for value in (0.47, -6.42e-06, -0.02, 1, None)] == ["0.470", "0.000", "−0.020", "1.000", "–"]
    ends = ({"min": None, "max": 0.01}, {"min": 0.95, "max": None}, {"min": 50, "max": 100})
    assert [bound(line) for line in ends] == ["≤ 0.01", "≥ 0.95", "50 – 100"]
    assert visible("\n of") == "\\n␣of"


def test_scorecard_of_values_alone():
    targets = check({"enforce": False, "mse": {"max": 0.01}}, Targets, "targets")
    result = check(measured(9) | {"test": TEST | {"mse": 0.02}}, Result, "result")
    card = scorecard([result], targets)
    assert failures(card) == ["layer 9: mse is 0.02, above its max 0.01"]
    result = check(measured(9) | {"test": TEST | {"mse": 0.0100012}}, Result, "result")
    said = failures(scorecard([result], targets))
    assert said == ["layer 9: mse is 0.010001, above its max 0.01"], "digits enough to see it"
    assert summary([result], card)["targets.failed"] == 1


def test_smaller_dictionaries_are_shown(project: Path, monkeypatch: pytest.MonkeyPatch):
    """A table, a picture and the summary's columns, for the layers whose dictionary was merged."""
    kinds = {"before": 0.05, "after": 0.051, "dropped": 0.06, "refitted": 0.055}
    metrics = {"fvu_inlier": 0.1, "l0": 80.0, "dead": 0.0, "delta_ce": None, "latents": 16}
    curve = [{"line": line, "latents": n, "fvu": 1 / n} for line in ("merged", "dropped", "refitted") for n in (8, 16)]
    found = {"layer": LAYERS[0], "living": 32, "merged": 16, "alone": 5, "largest": 4, "dropped": 1}
    found |= {"groups": [{"merged": 7, "latents": [3, 9, 21, 30]}], "ce_tokens": 256}
    found |= {"curve": curve, "test": {name: {"fvu": fvu, **metrics} for name, fvu in kinds.items()}}
    write_json(project / "merge" / f"{LAYERS[0]}.json", found)
    report(monkeypatch)
    page, numbers = Path("report.html").read_text(encoding="utf-8"), read("summary.json")
    assert "Not run: controls, interpret, explain, cluster, invert, steer_eval, evaluate;" in page
    assert "merged/3/groups.parquet" in page and "3, 9, 21, 30" in page
    assert "Smaller dictionaries" in page and "the largest of 4" in page and Path("plots/merge-3.png").exists()
    assert "is of 256 test tokens here, and of 4,000 in the scorecard" in page, "two values of one metric"
    prefix = f"merge.{LAYERS[0]}"
    assert numbers[f"{prefix}.test.after.fvu"] == 0.051 and numbers[f"{prefix}.test.dropped.fvu"] == 0.06
    assert numbers[f"{prefix}.groups.dropped"] == 1
    assert f"{prefix}.test.after.delta_ce" not in numbers and f"{prefix}.test.before.fvu" not in numbers
    assert not any(name.startswith(f"merge.{LAYERS[1]}") for name in numbers)


def test_an_sae_that_pca_beats_is_said_first_and_in_red(project: Path, monkeypatch: pytest.MonkeyPatch):
    good = measured(6)
    few = good | {"rows": good["rows"] | {"train": 3325}, "test": good["test"] | {"fvu_inlier": 0.25}}
    worse = measured(9) | {"test": measured(9)["test"] | {"fvu_inlier": 1.2}}
    write_layers(project / "train", {6: few, 9: worse})
    report(monkeypatch)
    page = html.unescape(Path("report.html").read_text(encoding="utf-8"))
    red = re.findall(r'<section class="verdict bad">\s*<strong>(Layer .*?)</strong>', page)
    assert red == [
        "Layer 6: the SAE is worse than PCA of 64 components: fvu_inlier is 0.25, PCA's 0.21. "
        "4,096 latents on 3,325 rows are too many: try train.latents=512",
        "Layer 9: the SAE is worse than predicting the mean: fvu_inlier is 1.2, the mean's 1. "
        "792 steps are few: try train.epochs=13",
    ]
    assert page.index("Layer 6: the SAE") < page.index("targets fail"), "above all else"


def twins(layer: int, **margin: float) -> dict[str, Any]:
    """What controls writes of a layer: a twin whose fvu_inlier is worse by 0.03, and one that could not be."""
    margins = {"fvu_inlier": {"value": 0.03, "low": 0.02, "high": 0.04} | margin}
    test = TEST | {"fvu_inlier": 0.12, "mse": 0.02, "ce_recovered": None}
    twin = {"test": test, "margin": margins, "best": {"step": 640, "score": 0.1}, "weights": "w"}
    return {"layer": layer, "twins": {"frozen_decoder": twin}, "left_out": {"frozen_encoder": "rule gated <scales> it"}}


def test_twins_stand_beside_the_sae(project: Path, monkeypatch: pytest.MonkeyPatch):
    """In the scorecard, beside the layer's numbers, in the summary and in the line that says it all; not counted."""
    write_json(project / "controls" / "9.json", twins(9))
    report(monkeypatch)
    page, card, numbers = Path("report.html").read_text(encoding="utf-8"), read("scorecard.json"), read("summary.json")
    assert "Not run: interpret," in page
    assert ">frozen decoder</th>" in page and ">frozen decoder of layer 9</th>" in page
    assert "left out: rule gated &lt;scales&gt; it" in page and "0.02&nbsp;– 0.04" in page
    assert (card["passed"], card["failed"], numbers["controls.passing"]) == (18, 0, 0), "a twin is no target"
    verdicts = {line["metric"]: line["pass"] for line in card["twins"] if line["twin"] == "frozen_decoder"}
    assert verdicts["mse"] is False and verdicts["fvu_inlier"] is True and verdicts["ce_recovered"] is None
    assert numbers["controls.9.frozen_decoder.mse"] == 0.02 and "controls.9.frozen_decoder.ce_recovered" not in numbers
    assert numbers["controls.9.frozen_decoder.margin.fvu_inlier"] == 0.03
    assert card["verdict"] == "18 of 18 targets; fvu_inlier of layer 9: 0.03 ± 0.01 better than frozen_decoder"


@pytest.mark.parametrize(("by", "good"), [(0.02, True), (0.021, False)])
def test_a_target_may_ask_for_a_margin_over_a_twin(
    project: Path, monkeypatch: pytest.MonkeyPatch, by: float, good: bool
):
    write_json(project / "controls" / "9.json", twins(9))
    set_params("targets", fvu_inlier={"max": "auto", "beats": {"frozen_decoder": by}})
    report(monkeypatch)
    card, page = read("scorecard.json"), Path("report.html").read_text(encoding="utf-8")
    assert (card["passed"], card["failed"]) == ((19, 0) if good else (18, 1))
    assert card["margins"] == [
        {
            "layer": 9, "metric": "fvu_inlier", "twin": "frozen_decoder", "by": by, "sae": 0.09, "value": 0.12,
            "margin": 0.03, "low": 0.02, "high": 0.04, "pass": good,
        }
    ]  # fmt: skip
    phrase = "layer 9: fvu_inlier beats frozen_decoder by 0.03, from 0.02 to 0.04, not surely by 0.021"
    assert failures(card) == ([] if good else [phrase]) and (phrase in page) is not good
    assert f"{by} ≤ 0.03" in page


def test_the_verdict_names_the_nearest_twin_and_says_if_it_is_not_beaten(project: Path, monkeypatch):
    write_json(project / "controls" / "9.json", twins(9))
    write_json(project / "controls" / "3.json", twins(3, value=0.004, low=-0.01, high=0.018))
    report(monkeypatch)
    line = "18 of 18 targets; fvu_inlier of layer 3: not better than frozen_decoder (0.004 ± 0.01)"
    assert read("scorecard.json")["verdict"] == line
    write_json(project / "controls" / "3.json", {"skipped": True})
    write_json(project / "controls" / "9.json", {"skipped": True})
    report(monkeypatch)
    assert read("scorecard.json")["verdict"] == "18 of 18 targets" and read("scorecard.json")["twins"] == []


def test_searches_for_prompts_are_shown(project: Path, monkeypatch: pytest.MonkeyPatch):
    """A table of the best prompts, and below it how the searches got there."""
    points = [{"method": "greedy", "calls": calls, "activation": 2.0 * calls} for calls in (1, 2, 4)]
    row = {"latent": 7, "text": "a cat", "pieces": ["a", " cat"], "values": [0.0, 8.0], "activation": 8.0}
    row |= {"corpus_max": 7.5, "random": 3.0, "template": None, "cross_entropy": 9.0, "method": "greedy"}
    row |= {"start": "random", "beats_corpus": True, "curves": points}
    shares = {"layer": LAYERS[0], "beats_random": 1.0, "beats_corpus": 1.0}
    write_json(project / "invert" / f"{LAYERS[0]}.json", {**shares, "latents": [row]})
    report(monkeypatch)
    page = Path("report.html").read_text(encoding="utf-8")
    assert ">Inversion</h2>" in page and f"Layer {LAYERS[0]}: the best activation so far" in page
    assert base64.b64encode(Path(f"plots/inversion-{LAYERS[0]}.png").read_bytes()).decode() in page
    assert read("summary.json")[f"invert.{LAYERS[0]}.beats_random"] == 1
