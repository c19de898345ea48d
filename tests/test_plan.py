"""What a plan says is what the pipeline writes: bytes counted in its files, and every number by hand."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small
import torch
from conftest import VOCABULARY, save_tiny_lm
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GPT2Config

from apps.plan import cost, speed, table, words
from apps.plan.cost import Cost, Plan
from apps.plan.given import with_imported_sizes
from apps.plan.model import Model, find_model, told
from apps.plan.rows import Rows, rows
from apps.plan.speed import Speed
from src import plan as script
from stages.select.whole import Params, read_whole, whole
from strata.corpus.knobs import LM
from strata.run import params
from strata.run.door import BadInput
from strata.run.files import write_json
from strata.sae import disk
from strata.sae.sae import SAE

ROOT = small.ROOT
SPEED = Speed(product=1e12, step=0.05, encode=1e-5, pace=1.0)
MODEL = Model(width=10, blocks=4, block=1000, head=500, parameters=4600, stored=9200, source="here")
ROWS = Rows(total=1000, train=800, validation=100, test=100, contexts=20, context=64, note=None)


def section(**changes: Any) -> Params:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    values = words.changed(params.read(ROOT / "params.yaml"), {"extract.dtype": "bfloat16", **named})
    return whole(values)


def tensors(folder: Path) -> int:
    """Bytes of all tensors in a folder's safetensors files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118 - not a dict
    return total


# --- disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 vectors of 8 numbers, 32 latents, k 4, shards of 64 rows: run until interpret, elsewhere."""
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("STRATA_TRACKING", "off")
        small.make(folder)
        small.of_vectors()
        small.change(train__rule="topk", train__keep_every=2, train__epochs=4)
        small.run("select", "fetch_lm", "fetch_corpus", "extract", "fetch_texts", "extract_texts", "fetch_tasks")
        small.run("extract_tasks", "tune", "train", "stability", "interpret")
    return folder


def planned(project: Path) -> tuple[Params, Plan]:
    section = read_whole(project / "params.yaml")
    model = find_model(section.fetch.lm, project / "data" / "lm", {"width": 8})
    return section, Plan(section, model, rows(section, {}, project / "data"), SPEED)


def test_bytes_are_those_that_the_pipeline_wrote(project: Path):
    section, plan = planned(project)
    data, knobs = project / "data", section.train
    assert (plan.rows.total, plan.rows.contexts, plan.rows.note) == (150, 150, None)
    assert tensors(data / "activations" / "0") == cost.activation_bytes(150, 8, "vectors") == 150 * 8 * 4
    assert tensors(data / "activations" / "tokens") == cost.token_bytes(plan.rows) == 150 * 8
    assert tensors(data / "sae" / "0" / "final") == knobs.sae_bytes(8) == 4 * (2 * 32 * 8 + 32 + 8)
    kept = [path for path in (data / "sae" / "0").iterdir() if path.is_dir()]
    assert sum(map(tensors, [data / "sae" / "0", *kept])) == plan.train(0).disk
    meta = json.loads((data / "latents" / "0" / "meta.json").read_text())
    entries = sum(shard["entries"] for shard in meta["shards"])
    assert 0.5 * 150 * 4 < entries <= 150 * 4  # k a row, but for those that are 0
    assert tensors(data / "latents" / "0" / "codes") == cost.code_bytes(entries, 32, 3) == 8 * entries + 8 * 33 * 3


def test_thresholds_and_a_bounded_decoder_are_stored_too():
    knobs = section(train__rule="jumprelu", train__latents=32, train__k=4).train
    assert knobs.sae_bytes(8) == 4 * (2 * 32 * 8 + 32 + 8 + 32)
    bounded = knobs.model_copy(update={"decoder_activation": "tanh"})
    assert bounded.sae_bytes(8) == 4 * (2 * 32 * 8 + 32 + 8 + 32 + 8)


# --- time and memory, by hand -------------------------------------------------------------------------------------


def test_extract_costs_two_operations_a_parameter_and_position():
    plan = Plan(section(layers=[0, 2]), MODEL, ROWS, SPEED)
    found = plan.extract()
    assert found.disk == 2 * (1000 * 10 * 2) + 20 * 64 * 8
    assert found.seconds == pytest.approx(cost.LOADS + 20 * 64 * 2 * 3000 / (cost.FORWARD * 1e12))
    before = replace(plan, params=section(layers=[0, 2], extract__hook="resid_pre")).extract()
    assert before.seconds == pytest.approx(cost.LOADS + 20 * 64 * 2 * 2000 / (cost.FORWARD * 1e12))


def test_training_costs_its_steps_and_what_is_encoded():
    plan = Plan(section(train__batch_size=100, train__epochs=3, train__ce_tokens=0), MODEL, ROWS, SPEED)
    found = plan.train(3)
    pca = 800 * 100 * 2 * 4 / 1e12
    assert found.what == "24 steps of 100"
    assert found.seconds == pytest.approx(cost.LOADS + 24 * 0.05 + (1000 + 3 * 3 * 100 + 300 + 100) * 1e-5 + pca)
    assert found.memory == cost.BASE + 7 * plan.params.train.sae_bytes(10) + 2 * 800 * 10 * 2
    assert Plan(section(layers=[3, 6, 9], **{"+by_layer__9__latents": 8192}), MODEL, ROWS, SPEED).train(9).disk == (
        2 * 4 * (2 * 8192 * 10 + 2 * 8192 + 10) + 4 * 8192
    )


def test_an_sae_that_is_given_is_measured_and_not_trained(tmp_path: Path):
    jump = SAE(torch.ones(32, 10), torch.zeros(32), torch.ones(32, 10), torch.zeros(10), threshold=torch.ones(32))
    disk.save(tmp_path / "jump", jump, {"l0": 5.4})
    disk.save(tmp_path / "top", replace(jump, threshold=None, k=3), {"l0": 2.9})
    latents, rows = section().train.latents, 1000 + 100 + 100  # all, those of validation and of the test again
    cases = ("jump", 5, 4 * (2 * 320 + 74), 32), ("top", 3, 4 * (2 * 320 + 42), 32), ("none", 80, 0, 0)
    for name, k, size, n in cases:
        given = {"folder": str(tmp_path / name), "sha256": "0"}
        plan = Plan(section(train__k=80, train__ce_tokens=0, **{"+by_layer__6__from": given}), MODEL, ROWS, SPEED)
        found = plan.train(6)
        seconds = cost.LOADS + (n or latents) / latents * rows * 1e-5 + 800 * 100 * 2 * 4 / 1e12
        assert found.what == "0 steps, it is given" and found.seconds == pytest.approx(seconds)
        assert plan.interpret(6).what == f"{1000 * k:,} codes"
        assert plan.train(3).what.endswith(" steps of 1024")
        if n:
            assert (found.disk, found.memory) == (size + 4 * 32, cost.BASE + 2 * size)


def test_an_sae_that_is_given_may_be_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config: dict[str, Any] = {"architecture": "jumprelu", "d_sae": 32, "metadata": {"l0": 5.4}}

    def sizes(folder: str, **changes: Any) -> tuple[int, int]:
        write_json(tmp_path / "sae" / disk.CONFIG, {**config, **changes})
        knobs = section(**{"train__k": 80, "+train__from": {"folder": folder, "sha256": "0"}}).train
        found = with_imported_sizes(knobs)
        return found.latents, found.k

    latents = section().train.latents
    assert sizes("~/sae") == (32, 5)
    assert sizes("~nobody/sae") == (latents, 80)
    assert sizes("~/sae", metadata=["l0"]) == (32, 80)
    assert sizes("~/sae", architecture=["jumprelu"]) == (latents, 80)


def test_stages_that_are_off_cost_nothing():
    names = [one.stage for one in Plan(section(), MODEL, ROWS, SPEED).costs()]
    first = ["fetch", "extract", "extract_tasks", "tune", "train@3", "train@6", "train@9"]
    assert names[:7] == first and "invert@9" in names
    off = section(
        tune__run=False, interpret__run=False, cluster__run=False, merge__run=False, invert__run=False,
        evaluate__tasks__sources=[],
    )  # fmt: skip
    names = [one.stage for one in Plan(off, MODEL, ROWS, SPEED).costs()]
    probed = ["evaluate@3", "evaluate@6", "evaluate@9"]
    trained = ["train@3", "train@6", "train@9", "controls@9"]
    assert names == ["fetch", "extract", *trained, "steer_eval@9", *probed, "report, track"]
    off = section(tune__run=False, steer_eval__run=False, evaluate__run=False)
    names = [one.stage for one in Plan(off, MODEL, ROWS, SPEED).costs()]
    assert not [name for name in names if name.startswith(("evaluate", "steer"))]


def test_explaining_costs_by_itself():
    """On the layers that are explained; how long another model takes, nobody knows."""

    def found(**changes: Any) -> list[cost.Cost]:
        costs = Plan(section(**changes), MODEL, ROWS, SPEED).costs()
        return [one for one in costs if one.stage.startswith("explain")]

    (own,) = found(explain__latents=10)
    assert own.stage == "explain@9" and own.what == "10 latents"
    assert own.seconds == pytest.approx(cost.LOADS + 10 * cost.EXPLAINED * MODEL.whole / (cost.FORWARD * 1e12))
    assert [one.seconds for one in found(explain__model="endpoint:x", explain__layers=[3, 9])] == [None, None]
    assert not found(explain__model=None) and not found(interpret__run=False)


def test_prompts_of_tasks_cost_what_they_may_at_most():
    """BBC News has 2,225 articles, more than 5 × 400; of sae-probes `short` takes 20 tasks."""
    sources = [{"source": "package:bbc-news"}, {"source": "package:sae-probes"}, {"source": "a.csv"}]
    plan = Plan(section(layers=[0, 2], evaluate__tasks__sources=sources), MODEL, ROWS, SPEED)
    found, prompts = plan.tasks(), 2000 + 20 * 400 + 400
    assert found.what == f"{prompts:,} prompts at most"
    assert found.disk == 2 * (prompts * 63 * 10 * 2)  # the last token and the mean: all tokens but BOS
    assert found.seconds == pytest.approx(cost.LOADS + prompts * 64 * 2 * 3000 / (cost.FORWARD * 1e12))
    probes = (plan.evaluate(2).seconds or 0) - (plan.evaluate(0).seconds or 0)  # the last of layers has the tasks
    assert probes == pytest.approx(cost.TASK * (5 + 20 + 1) * SPEED.pace)
    last = Plan(section(evaluate__tasks__sources=sources[:1], evaluate__tasks__pooling=["last"]), MODEL, ROWS, SPEED)
    assert last.tasks().disk == 3 * 2000 * 10 * 2


def test_a_layer_that_is_trained_again_costs_its_trainings():
    plan = Plan(section(stability__seeds=3, stability__pool=False), MODEL, ROWS, SPEED)
    once, again = plan.train(9), plan.stability(9)
    assert once.seconds and again.seconds == pytest.approx(3 * once.seconds + cost.LIGHT)
    assert again.disk == 3 * plan.knobs(9).sae_bytes(plan.model.width) and again.what == f"3 × {once.what}"
    assert [one.stage for one in plan.costs()].count("stability@9") == 1
    assert not [one for one in Plan(section(), MODEL, ROWS, SPEED).costs() if one.stage.startswith("stability")]


def test_keys_of_by_layer_may_be_text():
    """As DVC writes them after `-S +by_layer.9.k=48`."""
    values = {**params.read(ROOT / "params.yaml"), "by_layer": {"9": {"k": 48}}}
    found = whole(values)
    assert (found.knobs(9).k, found.knobs(3).k) == (48, found.train.k)
    values = words.changed(values, {"by_layer.9.k": 40})
    assert values["by_layer"] == {"9": {"k": 40}}


@pytest.mark.parametrize("stage", ["extract", "train@3", "interpret@3", "merge@3", "tune"])
def test_more_rows_cost_more(stage: str):
    big = replace(ROWS, total=100_000, train=80_000, validation=10_000, test=10_000, contexts=2000)
    few, many = ({one.stage: one for one in Plan(section(), MODEL, n, SPEED).costs()}[stage] for n in (ROWS, big))
    assert few.seconds and many.seconds and many.seconds > few.seconds


def test_speeds_are_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    knobs = section(train__latents=64, train__k=4, train__batch_size=64, train__auxk_latents=8).train
    cpu = torch.device("cpu")
    monkeypatch.setattr(speed, "PATIENCE", 0.02)
    found = speed.measure(16, knobs, 64, torch.float32, cpu)
    assert all(value > 0 for value in (found.product, found.step, found.encode, found.pace))

    def second(job: Callable[[], object], device: torch.device) -> float:
        job()
        return 1.0

    monkeypatch.setattr(speed, "_seconds", second)
    assert speed.product(16, 64, torch.float32, cpu) == 2 * 64 * 16 * 64
    assert speed.training(16, knobs, cpu) == (1.0, 1 / 64)
    monkeypatch.setattr(speed, "WEIGHTS", 16 * 64)  # a dictionary four times as large is tried at this size
    assert speed.training(16, knobs.model_copy(update={"latents": 256}), cpu) == (4.0, 4 / 64)


# --- what is known of the model and its text ----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "neox"])
def test_a_folders_parameters_are_counted(tmp_path: Path, family: str):
    folder = save_tiny_lm(tmp_path / "lm", family)
    found = find_model(
        LM(kind="language", source=str(folder), revision=None, trust_remote_code=False), tmp_path / "none", {}
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert (found.width, found.blocks, found.head) == (32, 4, 32 * len(VOCABULARY))
    inside = sum(p.numel() for name, p in model.named_parameters() if re.search(r"\.\d+\.", name))
    assert found.block * 4 == inside and found.until(1) == 2 * inside / 2


BROKEN = ['{"model_type": "gpt2", "n_embd": "many"}', '{"model_type": "gpt2", "n_head": 5}', '{"model_type": [1]}', "{"]


@pytest.mark.parametrize("config", BROKEN)
def test_a_model_whose_configuration_is_broken_is_told(tmp_path: Path, config: str):
    (tmp_path / "config.json").write_text(config)
    lm = LM(kind="language", source=str(tmp_path), revision=None, trust_remote_code=False)
    with pytest.raises(BadInput, match=f"^{tmp_path} does not say how large its model is: ") as refusal:
        find_model(lm, tmp_path / "lm", {})
    assert "\n" not in str(refusal.value)


def test_three_numbers_describe_gpt2():
    found = told(768, 12, 124_439_808)
    real = GPT2Config()
    assert (found.width, found.blocks) == (real.n_embd, real.n_layer)
    assert found.head == pytest.approx(real.vocab_size * real.n_embd, rel=0.03)  # and positions
    assert told(100, 2, 1000).block == 500 and told(100, 2, 1000).head == 0


def test_contexts_are_as_full_as_those_on_disk(tmp_path: Path):
    assert (
        rows(section(), {}, tmp_path).note
        == "contexts are taken to be 85% full, since their text has not been tokenised yet"
    )
    folder = tmp_path / "activations" / "tokens"
    folder.mkdir(parents=True)
    meta = {"model": {}, "corpus": "", "file_contexts": 8, "files": [], "splits": {}}
    meta |= {"context": 128, "rows": 640, "contexts": {"test": [8, 10]}}
    (folder / "meta.json").write_text(json.dumps(meta))
    found = rows(section(), {}, tmp_path)  # half full
    assert (found.contexts, found.train, found.note) == (2500, 128_000, None)
    assert rows(section(extract__pack=True), {}, tmp_path).contexts == 1260  # 127 of 128


# --- the command --------------------------------------------------------------------------------------------------


def test_the_table(capsys: pytest.CaptureFixture[str]):
    costs = [
        Cost("extract", "5 rows", 2e9, 1e9, 75),
        Cost("train@3", "a", 3e6, 2e9, 3599),
        Cost("train@6", "b", 1e6, 1e6, 1),
    ]
    found = table.table([*costs, Cost("fetch", "", None, None, None)]).splitlines()
    assert found[2].split() == ["extract", "5", "rows", "2", "GB", "1", "GB", "1", "min", "15", "s"]
    assert re.sub(" +", " ", found[3]) == "train 2 × (a … b) 4 MB 2 GB 1 h 0 min"
    assert re.sub(" +", " ", found[-1]) == "all 2 GB 2 GB 1 h 1 min"
    assert [table.duration(s) for s in (0.4, 59.6, 200_000)] == ["0 s", "1 min 0 s", "2 d 7 h"]
    script.warn(1e18, 1e15)
    assert capsys.readouterr().err.startswith("plan: 1,000,000 TB of disk are needed, and ")
    script.warn(1, 1)
    assert capsys.readouterr().err == ""


def test_the_recipe_of_a_model_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "PATIENCE", 0.01)
    monkeypatch.setattr(script, "keep_memory", lambda: None)  # which would last for the tests that follow
    monkeypatch.setattr(script.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    layers = json.dumps(list(range(12)))
    script.main(
        *("fetch.lm.source=gpt2", "width=768", "blocks=12", "parameters=124e6", f"layers={layers}"),
        *("extract.tokens=10000000", "train.rule=jumprelu", "train.latents=256", "train.k=16", "train.batch_size=64"),
    )
    out, err = capsys.readouterr()
    assert re.search(r"10,000,000 rows × 12 layers +184 GB", out) and "85% full" in out and "\nall " in out
    assert " of disk are needed, and 1 GB are free" in err


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["train.latents"], "'train.latents' is no key=value, such as train.latents=16384 or width=768"),
        (["width=wide"], "width is 'wide', not a whole number from 1 to 1e+15"),
        (["train.latent=3"], "train.latent is not in params.yaml; did you mean train.latents?"),
        (["+train.latent=3"], "params.yaml: train.latent is not a known key"),
        (["extract.tokens=many"], "params.yaml: extract.tokens is the text 'many', not a number"),
        (["train.k=9999"], "params.yaml: train: k is 9999, more than the 4096 latents"),
        (["width=768"], "width is given, but not blocks; give width=…, blocks=…, parameters=…"),
        (["fetch.lm.source=gpt2"], "nothing is known of gpt2 yet; bring it in with `dvc repro fetch_lm`, or give"),
        (["width=8", "blocks=4", "parameters=1e6"], "params.yaml: layers names layer 6, but the model has 4 blocks"),
        (["fetch.lm.kind=sentence", "fetch.lm.source=package:x"], "params.yaml: layers is [3, 6, 9], but with"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_answered_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], sentence: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    with pytest.raises(BadInput) as refusal:
        script.main(*given)
    assert str(refusal.value).startswith(sentence) and "\n" not in str(refusal.value)
