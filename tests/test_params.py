"""params.yaml: what is written wrong is said in one sentence. And the door, where every stage says it."""

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from stages.select.whole import SECTIONS, read_whole
from strata import auto
from strata.corpus.corpus import Corpus
from strata.rows.size import Size
from strata.run import params
from strata.run.door import BadInput
from strata.run.params import Machine
from strata.training.knobs import Train, knobs_of
from strata.verdict.targets import Targets

ROOT = Path(__file__).resolve().parents[1]
WHOLE: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
SIZE = Size("language", 128_000, 640)


def written(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(folder: Path, section: str, line: str) -> Path:
    """The real params.yaml with another ``line`` for the same key of ``section``, as a user would write it."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    key = line.partition(":")[0].lstrip("# ")
    start = 0 if key == section else text.index(f"\n{section}:")
    place = re.compile(rf"^( *){key}:.*$(\n\1- .*)*", re.MULTILINE).search(text, start)
    assert place
    return written(folder, text[: place.start()] + place[1] + line.replace("\n", "\n" + place[1]) + text[place.end() :])


def refused(section: str, kind: Any, path: Path) -> str:
    with pytest.raises(BadInput) as refusal:
        params.load(section, kind, path)
    return str(refusal.value).removeprefix(f"{path}")


def test_the_defaults_are_good():
    path = ROOT / "params.yaml"
    assert list(params.read(path)) == list(SECTIONS)
    whole = read_whole(path)
    assert {name: getattr(whole, name) for name in ("seed", "layers", "by_layer")} == {
        name: WHOLE[name] for name in ("seed", "layers", "by_layer")
    }
    assert (
        params.load("train", Train, path).model_dump() == whole.train.model_dump() == auto.train(WHOLE["train"], SIZE)
    )
    assert params.load("machine", Machine, path).threads == WHOLE["machine"]["threads"]
    assert params.load("layers", list[int], path) == WHOLE["layers"]
    assert set(params.load("targets", Targets, path).bounds) == set(WHOLE["targets"]) - {"enforce"}


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("clip: 1.0\nclp: 1.0", ": train.clp is not a known key; did you mean train.clip?"),
        ("# clip: 1.0", ": train.clip is missing"),
        ("lr: '1e-4'", ": train.lr is the text '1e-4', not a number; write it without quotes"),
        ("k: many", ": train.k is the text 'many', not a number"),
        ("k: 6.5", ": train.k is 6.5, but it should be a valid integer"),
        ("k: true", ": train.k is True, but it should be a valid integer"),
        ("k: 0", ": train.k is 0, but it should be greater than 0"),
        (
            "outliers: skipped",
            ": train.outliers is 'skipped', but it should be 'keep', 'shorten' or 'skip'; did you mean skip?",
        ),
        (
            "rule: top",
            ": train.rule is 'top', but it should be 'topk', 'batchtopk', 'matryoshka', 'jumprelu', 'relu', 'gated' "
            "or 'reward'; did you mean topk?",
        ),
        ("latents: 0", ": train.latents is 0, but it should be greater than 0"),
        ("k: 4097", ": train: k is 4097, more than the 4096 latents of the dictionary; lower k"),
    ],
)
def test_a_wrong_knob_is_one_sentence(tmp_path: Path, line: str, sentence: str):
    assert refused("train", Train, changed(tmp_path, "train", line)) == sentence


@pytest.mark.parametrize(
    "section, kind, line, sentence",
    [
        ("layers", list[int], "layers: 9", ": layers is 9, but it should be a valid list"),
        ("targets", Targets, "dead: {most: 0.1}", ": targets.dead.most is not a known key"),
        ("targets", Targets, "dead: {}", ": targets.dead: a target needs min, max or both, else it cannot fail"),
        ("machine", Machine, "threads: two", ": machine.threads is the text 'two', not a number"),
    ],
)
def test_other_sections_are_as_strict(tmp_path: Path, section: str, kind: Any, line: str, sentence: str):
    assert refused(section, kind, changed(tmp_path, section, line)).startswith(sentence)


def test_a_key_deep_inside_is_named_by_its_whole_place():
    value = {**WHOLE["fetch"]["corpus"], "sources": [{"source": "a.csv"}, {"source": "b.csv", "seperator": ";"}]}
    with pytest.raises(BadInput) as refusal:
        params.check(value, Corpus, "params.yaml: fetch.corpus")
    place = "fetch.corpus.sources.1"
    sentence = f"params.yaml: {place}.seperator is not a known key; did you mean {place}.separator?"
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", " must be a mapping of names to values"),
        ("- 1\n", " must be a mapping of names to values"),
        ("seed: [1\n", " is not valid YAML: "),
        ("seed: 010\n", " is not valid YAML: 010 would be read as 8; write 8, or put it in quotes"),
        ("by_layer: {1:30: {}}\n", " is not valid YAML: "),
        ("seed: 1_000\n", " is not valid YAML: 1_000 would be read as 1000; write 1000, or put it in quotes"),
        (yaml.safe_dump({**WHOLE, "trian": {}}), " has an unknown section 'trian'; did you mean train?"),
        (yaml.safe_dump({k: v for k, v in WHOLE.items() if k != "by_layer"}), " lacks the section 'by_layer'"),
    ],
)
def test_the_file_as_a_whole(tmp_path: Path, text: str, sentence: str):
    path = written(tmp_path, text)
    with pytest.raises(BadInput) as refusal:
        read_whole(path)
    found = str(refusal.value).removeprefix(f"{path}")
    assert found.startswith(sentence) and "\n" not in found


def test_a_section_that_a_stage_wants_and_that_is_not_there(tmp_path: Path):
    assert refused("train", Train, written(tmp_path, "seed: 1\n")) == " lacks the section 'train'"


def test_no_file_at_all(tmp_path: Path):
    assert refused("seed", int, tmp_path / "params.yaml") == " is missing; run from the root of the project"


def test_sections_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        params.check(WHOLE["train"], Train, "train").k = 3


# --- by_layer -----------------------------------------------------------------------------------------------------


def test_a_layer_can_have_knobs_of_its_own():
    knobs = knobs_of(WHOLE["train"], {}, {"k": 48, "lr": 1.0e-3}, 9, SIZE)
    assert (knobs.k, knobs.lr, knobs.latents) == (48, 1.0e-3, 4096)
    assert knobs_of(WHOLE["train"], {}, {}, 9, SIZE).model_dump() == auto.train(WHOLE["train"], SIZE)


@pytest.mark.parametrize(
    "override, sentence",
    [
        ({"kk": 48}, "params.yaml: train with by_layer.9.kk is not a known key"),
        ({"k": "1e2"}, "params.yaml: train with by_layer.9.k is the text '1e2', not a number; write it without quotes"),
        ({"k": 33, "latents": 32}, "params.yaml: train with by_layer.9: k is 33, more than the 32 latents of the"),
        ({"latents": "some"}, "params.yaml: train with by_layer.9.latents is the text 'some', not a number"),
    ],
)
def test_a_wrong_knob_of_a_layer_names_the_layer(override: dict[str, Any], sentence: str):
    with pytest.raises(BadInput) as refusal:
        knobs_of(WHOLE["train"], {}, override, 9, SIZE)
    assert str(refusal.value).startswith(sentence)


# --- a real stage ---------------------------------------------------------------------------------------------------


def test_a_real_stage_says_it_in_one_line(tmp_path: Path):
    changed(tmp_path, "by_layer", "by_layer: 9")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def select(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "src.select", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    ended = select("layers")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "select: params.yaml: by_layer is 9, but it should be a valid dictionary\n"
    assert not (tmp_path / "layers").exists()
    ended = select()
    assert ended.returncode == 2
    assert ended.stderr == "select: TARGET is missing: python -m src.select TARGET [HOMES …]\n"
    changed(tmp_path, "by_layer", "by_layer: {77: {k: 3}}")
    ended = select("layers")
    assert ended.returncode == 0 and ended.stderr.startswith("select: by_layer.77 changes nothing: layers are [")
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["layers"], values["steer_eval"]["layers"], values["invert"]["run"] = [3], [9], False
    written(tmp_path, yaml.safe_dump(values))
    ended = select("layers")
    assert ended.stderr == "select: steer_eval does nothing: steer_eval.layers is [9], but layers are [3]\n"


def test_a_small_number_is_one_however_dvc_writes_it(tmp_path: Path):
    """`dvc exp run -S train.lr=0.00005` writes 5e-05, which YAML 1.1 takes for text."""
    path = written(tmp_path, (ROOT / "params.yaml").read_text(encoding="utf-8"))
    apply_overrides(path, ["train.lr=0.00005", "+tune.space.clip={min: 1e-7, max: 1e+20}"])
    assert "lr: 5e-05" in path.read_text(encoding="utf-8")
    values = params.read(path)
    assert (values["train"]["lr"], values["tune"]["space"]["clip"]) == (5e-05, {"min": 1e-7, "max": 1e20})


@pytest.mark.parametrize("word", ["77e6a09e206a134b", "1e5", "5.e3", "-2e-7", "12e3x"])
def test_a_word_that_looks_like_a_number_stays_a_word(word: str):
    """One hash in fifteen begins with digits, e, a digit."""
    assert params.parse_yaml(params.dump_yaml({"sha256": word, "lr": 5e-05}), Path("a")) == {
        "sha256": word,
        "lr": 5e-05,
    }
    if "a" in word:
        assert params.parse_yaml(f"sha256: {word}", Path("a")) == {"sha256": word}


def test_one_override_after_another_leaves_a_file_that_can_be_read(tmp_path: Path):
    """DVC's writer put a key behind a list's comment, once it had rewritten the file before."""
    path = written(tmp_path, (ROOT / "params.yaml").read_text(encoding="utf-8"))
    for override in ("train.k=3", "train.from_tune=[]", "layers=[3]", "+by_layer.3.k=2", "layers=[9]"):
        apply_overrides(path, [override])
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert params.check(values["train"], Train, "train").k == 3
    assert (values["train"]["from_tune"], values["layers"], values["by_layer"]) == ([], [9], {"3": {"k": 2}})


@pytest.mark.parametrize(
    "override", ["train.k=64", "seed=7", "extract.layers=[9]", "explain.model=null", "+by_layer.9.k=48", "layers=[9]"]
)
def test_an_experiment_changes_its_line_alone(tmp_path: Path, override: str):
    """`dvc exp run -S` writes the file anew. It is kept as DVC writes it, so that a diff shows what was asked for."""
    file = shutil.copy(ROOT / "params.yaml", tmp_path)
    before = Path(file).read_text(encoding="utf-8").splitlines()
    apply_overrides(file, [override])
    after = Path(file).read_text(encoding="utf-8").splitlines()
    differing = [line for line in difflib.unified_diff(before, after, n=0) if not line.startswith(("---", "+++"))]
    assert sum(line.startswith("@@") for line in differing) == 1, "all that changed stands in one place"
    if override == "train.k=64":
        assert [line.split("#")[0].split() for line in differing[1:]] == [["-", "k:", "auto"], ["+", "k:", "64"]]
    assert sum("#" in line for line in before) == sum("#" in line for line in after), "no comment is lost"
