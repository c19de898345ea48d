"""`auto`: what it was before it had a name for a language model, and numbers that fit the rows for documents."""

import re
import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
import yaml
from dvc.utils.hydra import apply_overrides

from apps.pareto.points import SUMMARY, read_points
from src import plan
from strata import auto
from strata.corpus import read
from strata.experiments.experiment import Experiment
from strata.rows.size import DOCUMENTS, Size
from strata.run.door import BadInput
from strata.run.files import read_json
from strata.run.params import check
from strata.training.knobs import Train
from strata.verdict.targets import settled

ROOT = Path(__file__).resolve().parents[1]
WHOLE: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
KNOBS = ("latents", "k", "batch_size", "epochs", "init")


def knobs(size: Size, **changes: Any) -> tuple[Any, ...]:
    """The five knobs, as train would have them."""
    found = check(auto.train({**WHOLE["train"], **changes}, size), Train, "train")
    return tuple(getattr(found, name) for name in KNOBS)


def test_the_kinds_are_those_of_fetch():
    assert set(DOCUMENTS) == {read.SENTENCE, read.OWN_VECTORS}


@pytest.mark.parametrize("kind", ["language", "resid_post", "resid_pre", "mlp_out", "attn_out"])
@pytest.mark.parametrize(("rows", "width"), [(128_000, 640), (10_000_000, 768), (2000, 16)])
def test_a_language_model_has_the_values_of_the_default_run(kind: str, rows: int, width: int):
    assert knobs(Size(kind, rows, width)) == (4096, 80, 1024, 5, "kaiming")
    targets = settled(WHOLE["targets"], kind, 32)
    assert not targets.enforce and {
        name: bound.model_dump(exclude={"beats"}) for name, bound in targets.bounds.items()
    } == {
        "mse": {"min": None, "max": 0.01},
        "l0": {"min": 50, "max": 100},
        "dead": {"min": None, "max": 0.1},
        "fvu_inlier": {"min": None, "max": 0.12},
        "ce_recovered": {"min": 0.95, "max": None},
        "delta_ce": {"min": None, "max": 0.5},
    }
    filters = auto.filters(WHOLE["fetch"]["corpus"], "language")
    assert (filters["min_chars"], filters["near_duplicates"]) == (200, 0.8)


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("width", [1, 2, 8, 64, 384, 1536, 12_288])
@pytest.mark.parametrize("rows", [1, 2, 15, 40, 400, 4000, 16_000, 10**6, 10**9])
def test_documents_always_get_knobs_that_go_together(kind: str, rows: int, width: int):
    latents, k, batch, epochs, init = knobs(Size(kind, rows, width))
    assert 1 <= k <= latents / 8 and k <= 32
    assert 16 <= latents <= 4096 and (latents <= rows / 5 or latents == 16)
    assert 1 <= batch <= rows and (rows // batch >= 16 or batch == 16 or rows < 16)
    assert epochs * (rows // batch) <= 20 * 10**6 and init == "data"


def test_what_is_written_stays_and_the_rest_fits_it():
    size = Size("vectors", 4000, 384)
    assert knobs(size, latents=8)[:2] == (8, 1)
    assert knobs(size, k=100)[:2] == (1024, 100) or knobs(size, k=100)[0] >= 800
    assert knobs(size, batch_size=1000)[2] == 1000
    assert knobs(size, epochs=3, init="orthogonal")[3:] == (3, "orthogonal")
    assert knobs(Size("vectors", 50, 384), micro_batches=3)[2] % 3 == 0
    assert knobs(Size("resid_post", 128_000, 640), latents=64)[:2] == (64, 64)
    assert knobs(Size("resid_post", 300, 640))[2] == 300  # no batch is larger than the rows


def test_more_rows_never_mean_fewer_latents_and_more_numbers_never_fewer_active_ones():
    by_rows = [knobs(Size("vectors", rows, 384))[0] for rows in range(1, 100_000, 997)]
    by_width = [knobs(Size("vectors", 4000, width))[1] for width in range(1, 2000, 37)]
    assert by_rows == sorted(by_rows) and by_width == sorted(by_width)


def test_targets_of_documents_follow_k_and_pca():
    pca = {"mse": 0.5, "fvu_inlier": 0.4, "l0": 16.0}
    found = settled(WHOLE["targets"], "sentence", 16, pca).bounds
    assert (found["l0"].min, found["l0"].max) == (8, 20)
    assert (found["mse"].max, found["fvu_inlier"].max) == (pytest.approx(0.45), pytest.approx(0.36))
    assert not found["fvu_inlier"].holds(0.4)  # PCA itself fails
    before = settled(WHOLE["targets"], "sentence", 16).bounds  # while training, nothing is known of PCA
    assert (before["mse"].max, before["l0"]) == (1, found["l0"])
    own = {**WHOLE["targets"], "mse": {"max": 0.34}, "l0": {"min": 3, "max": "auto"}}
    assert settled(own, "vectors", 16).bounds["mse"].max == 0.34
    assert settled(own, "vectors", 16).bounds["l0"].model_dump(exclude={"beats"}) == {"min": 3, "max": 20}


@pytest.mark.parametrize(("metric", "end"), [("dead", "max"), ("mse", "min"), ("delta_ce", "max")])
def test_an_auto_without_a_meaning_is_refused(metric: str, end: str):
    with pytest.raises(BadInput, match=rf"targets\.{metric}\.{end} is auto, but only mse\.max, l0\.min"):
        settled({**WHOLE["targets"], metric: {end: "auto"}}, "vectors", 16)


def test_an_auto_elsewhere_is_refused():
    with pytest.raises(BadInput, match=r"train\.lr is the text 'auto', not a number"):
        knobs(Size("vectors", 4000, 384), lr="auto")


def test_the_screen_says_what_became_of_it(capsys: pytest.CaptureFixture[str]):
    size, section = Size("vectors", 4000, 384), {"lr": 0.002, "latents": "auto", "k": "auto", "epochs": 3}
    auto.tell("train", section, {"lr": 0.002, "latents": 512, "k": 16, "epochs": 3}, size)
    assert capsys.readouterr().err == "train: latents 512, k 16, from 4,000 rows of 384\n"
    auto.tell("train", {"k": 3}, {"k": 3}, size)
    assert capsys.readouterr().err == ""


# --- who else reads the knobs -----------------------------------------------------------------------------------------


def test_a_plan_is_of_the_numbers_that_training_will_have():
    size, override = Size("vectors", 4000, 384), {0: {"latents": 64}}
    values = plan.settled({**WHOLE, "by_layer": override}, size)
    assert [values["train"][name] for name in KNOBS] == list(knobs(size))
    assert [values["by_layer"][0][name] for name in KNOBS] == list(knobs(size, latents=64))


def test_tracking_has_the_numbers_that_a_layer_was_trained_with():
    params = {"seed": 0, "by_layer": {0: {"latents": 64}}, "train": WHOLE["train"]}
    size = Size("vectors", 4000, 384)
    found = Experiment(params, {}, {"targets": []}, {}, [], {"lr": 0.003}, [], {0: size}).stage_params("train@0")
    assert tuple(found[name] for name in KNOBS) == knobs(size, latents=64)
    assert (found["lr"], found["layer"]) == (0.003, 0)


def test_pareto_tells_experiments_apart_by_what_auto_became():
    def shown(name: str, k: Any, became: int) -> dict[str, Any]:
        params = {"params.yaml": {"data": {"train": {"k": k, "latents": "auto"}}}}
        numbers = {"train.0.l0": became, "train.0.k": became, "train.0.latents": 512, "train.0.fvu_inlier": 0.1}
        return {"name": name, "revs": [{"data": {"params": params, "metrics": {SUMMARY: {"data": numbers}}}}]}

    points = read_points([{"experiments": [shown("a", "auto", 32), shown("b", 16, 16), shown("c", 32, 32)]}])
    assert {point.experiment: point.knobs for point in points} == {"a, c": {"train.k": "32"}, "b": {"train.k": "16"}}


# --- the commands of docs/embeddings.md -------------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """The overrides of each `dvc exp run` in docs/embeddings.md."""
    page = (ROOT / "docs" / "embeddings.md").read_text(encoding="utf-8")
    words = [shlex.split(block) for block in re.findall(r"```bash\n(dvc exp run .*?)```", page, re.DOTALL)]
    return [[word for flag, word in pairwise(block) if flag == "-S"] for block in words]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """params.yaml as it is, and 200 short messages under the names that docs/embeddings.md uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRATA_TRACKING", "off")
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    random = np.random.default_rng(0)
    bodies = [f"{('refund', 'parcel')[number % 2]} {number}" for number in range(200)]
    vectors = (np.eye(2, 24)[np.arange(200) % 2] + 0.1 * random.standard_normal((200, 24))).astype(np.float32)
    rows = {"id": list(range(200)), "body": bodies, "topic": ["ab"[number % 2] for number in range(200)]}
    with sqlite3.connect("app.sqlite") as database:
        database.execute("create table messages (id, body, topic, embedding)")
        blobs = zip(*rows.values(), (vector.tobytes() for vector in vectors), strict=True)
        database.executemany("insert into messages values (?, ?, ?, ?)", blobs)
    pq.write_table(pa.table({**rows, "embedding": vectors.tolist()}), "messages.parquet")
    Path("messages.csv").write_text("body,topic\n" + "".join(f"{body},a\n" for body in bodies))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("number", range(3))
def test_a_documented_command_takes_every_message(
    project: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = commands()[number]
    for override in overrides:
        apply_overrides(project / "params.yaml", [override])
    small.run("select", "fetch_corpus")
    meta = read_json(Path("data/corpus/meta.json"))
    assert (meta["documents"], meta["labels"]) == (200, 1 if "csv" in overrides[-1] else 2)
    assert "each document is a row" in capsys.readouterr().err
    if number:
        return
    small.change(tune__run=False, train__from_tune=[])
    small.run("fetch_lm", "extract", "tune", "train")
    said = capsys.readouterr().err
    assert "train 0: latents 16, k 2, batch_size 16, epochs 40, init data, from 160 rows of 24" in said
    trained = read_json(Path("reports/train/0.json"))
    assert [trained[name] for name in KNOBS[:4]] == [16, 2, 16, 40]
    assert trained["test"]["fvu"] < trained["controls"]["mean"]["fvu"]
