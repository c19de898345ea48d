"""Recipes: each one is good, what is wrong in one is told with its line, and DVC gets exactly what was checked."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import forked
import pytest
import small
import yaml
from test_pipeline import Project, copied, environment, ran

from apps.plan import speed
from apps.plan.speed import Speed
from apps.recipes import checkout, comments, experiment, recipe
from apps.recipes.check import Asked, asked, differences
from apps.recipes.layers import depth
from apps.recipes.recipe import over
from apps.recipes.words import alike, applied, words
from src import plan as plan_script
from src import run as run_script
from stages.select.whole import whole
from strata.corpus import sources
from strata.corpus.knobs import LM, Source
from strata.run import door, params
from strata.run.door import BadInput, BadUsage
from strata.run.files import write_json
from strata.sae import disk

ROOT = small.ROOT
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
ONLINE = {"gpt2", "news_titles", "truthfulqa", "wikipedia_vectors"}
BASE = params.read(ROOT / "params.yaml")
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
K_64 = "  k: 64                  # active latents a token; jumprelu: the target; relu, gated, reward: where they start"
FACTS = {  # of a model and texts that are not here
    "language": "width=768 blocks=18 parameters=124e6",
    "sentence": "width=384 blocks=6 parameters=22e6 documents=3000",
    "vectors": "width=768 documents=100000",
}


def twelve(lm: LM) -> int:
    return 12


def of(text: str, folder: Path, *own: str) -> Asked:
    """What is asked by a recipe with this text, and by words of -S."""
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return asked(BASE, recipe.read(path), own, twelve)


# --- those that are here --------------------------------------------------------------------------------------------


def test_the_recipes_that_the_issue_asks_for_are_there():
    of_tasks = {"gpt2", "sentences", "vectors", "csv", "imported", "sweep", "headlines"}
    of_seeds = {"wikipedia_vectors", "truthfulqa", "news_titles", "sqlite"}
    assert of_tasks | of_seeds <= set(RECIPES) and set(RECIPES) >= ONLINE


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_for_and_changes_something(name: str):
    path = ROOT / "recipes" / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ") and all(f"#   {what}:" in text for what in ("needs", "you get", "to vary"))
    mine = recipe.read(path)
    found = asked(BASE, mine, [], twelve)
    assert len(found.values) == (6 if name == "sweep" else 1)
    for values in found.values:
        whole(values)
    for key in mine.leaves():  # only keys that differ
        assert alike(over(BASE, mine.without(key))) != alike(over(BASE, mine.values)), key


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "measure", lambda *_: Speed(product=1e12, step=0.05, encode=1e-5, pace=1.0))
    kind = asked(BASE, recipe.read(Path(f"recipes/{name}.yaml")), [], twelve).values[0]["fetch"]["lm"]["kind"]
    plan_script.main(f"recipes/{name}.yaml", *FACTS[kind].split())
    said = capsys.readouterr().out
    assert said.count("\nall ") == (6 if name == "sweep" else 1)
    if name == "sweep":
        assert "1 of 6: train.latents=2048 train.k=32\n" in said
    if name == "gpt2":
        assert "× 18 layers" in said


@pytest.mark.parametrize("name", sorted(set(RECIPES) - ONLINE))
def test_what_a_recipe_without_a_network_reads_is_there(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    values = asked(BASE, recipe.read(Path(f"recipes/{name}.yaml")), [], twelve).values[0]
    for source in values["fetch"]["corpus"]["sources"]:
        found = sources.resolved(Source(**source))
        first = next(sources.documents(found))
        assert first.text and first.label and (first.vector is not None) == (found.vector is not None)
    for override in values["by_layer"].values():
        assert disk.fingerprint(Path(override["from"]["folder"])) == override["from"]["sha256"]


def test_the_example_inputs_are_small():
    files = [path for path in (ROOT / "recipes" / "data").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert files and all(path.stat().st_size < 50_000 for path in files)


# --- what is wrong is told with its line ----------------------------------------------------------------------------

WRONG: list[tuple[str, str]] = [
    ("trian:\n  k: 3\n", ":1: trian is no section of params.yaml; did you mean train?"),
    ("seed: 1\ntrain:\n  kk: 3\n", ":3: train.kk is not a known key; did you mean train.k?"),
    ("seed: 1\ntrain:\n  k: three\n  lr: 1.0\n", ":3: train.k is the text 'three', not a number"),
    ("train:\n  # none\n  foo:\n    a: 1\n    b: 2\n", ":3: train.foo is not a known key"),
    ("train: 5\n", ":1: train is 5, but it should be a valid dictionary"),
    ("train:\n  k: 90\n  latents: 80\n", ":2, 3: train: k is 90, more than the 80 latents of the dictionary"),
    ("fetch:\n  lm: {kind: sentence,\n    source: x}\n", ":2: layers is [3, 6, 9], but with fetch.lm.kind sentence"),
    (
        "fetch:\n  corpus:\n    sources:\n      - source: a.csv\n        text: b\n      - source: b\n        txt: b\n",
        ":7: fetch.corpus.sources.1.txt is not a known key; did you mean fetch.corpus.sources.1.text?",
    ),
    ("by_layer:\n  9:\n    latents: 32\n    k: 48\n", ":2: train with by_layer.9: k is 48, more than the 32"),
    ("tune:\n  space:\n    k: {min: 8, max: 64}\n    l: [1, 2]\n", ":4: tune.space: 'l' is no knob of train"),
    ("train:\n  k: choice(32, 64, 5000)\n", ":2: train: k is 5000, more than the 4096 latents"),
    ("train:\n  k: choice(32, 64\n", ":2: train.k is the text 'choice(32, 64', not a number"),
    ("layers: evry 3\n", ":1: layers is 'evry 3'; it must be a list of layers, all, or every 3"),
    ("layers: every 0\n", ":1: layers is 'every 0'; it must be a list of layers, all, or every 3"),
    ("seed: 1\nlayers: all\nfetch: 5\n", ":2, 3: fetch.lm is None"),
    ("seed: 1\nlayers: [9]\nextract:\n  layers: [3]\n", ":2, 4: extract.layers is [3], but layers names 9"),
    ("seed: 1\nseed: 2\n", " is not valid YAML: seed is there twice"),
    ("train: [\n", " is not valid YAML"),
    ("# nothing\n", " must be a mapping of names to values"),
]


@pytest.mark.parametrize("text, said", WRONG, ids=[said[:40] for _, said in WRONG])
def test_what_is_wrong_is_told_with_its_line(text: str, said: str, tmp_path: Path):
    with pytest.raises(BadInput) as refusal:
        of(text, tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}/mine.yaml{said}")


OWN: list[tuple[str, list[str], str]] = [
    ("seed: 1\n", ["train.kk=64"], "-S train.kk=64: train.kk is not in params.yaml; did you mean train.k?"),
    ("seed: 1\n", ["train.k=abc"], "-S train.k=abc: train.k is the text 'abc'"),
    ("seed: 1\n", ["layers=[9"], "-S layers=[9: "),
    ("seed: 1\n", ["~train.kk"], "-S ~train.kk: Could not delete"),
    ("seed: 1\n", ["layers=each"], "-S layers=each: layers is 'each'"),
    ("layers: [5]\n", ["seed=2", "extract.layers=[6,9]"], "-S extract.layers=[6,9] and {}:1: extract.layers is [6, 9]"),
    ("train:\n  kk: 1\n", ["seed=2"], "{}:2: train.kk is not a known key"),
]


@pytest.mark.parametrize("text, own, said", OWN, ids=[said[:40] for _, _, said in OWN])
def test_what_is_wrong_in_a_word_is_told_with_the_word(text: str, own: list[str], said: str, tmp_path: Path):
    with pytest.raises(BadInput) as refusal:
        of(text, tmp_path, *own)
    assert str(refusal.value).startswith(said.format(tmp_path / "mine.yaml"))


def test_a_recipe_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(BadInput, match=r"recipes/sentence.yaml is missing; .* did you mean recipes/sentences.yaml\?"):
        recipe.read(Path("recipes/sentence.yaml"))


# --- layers by a word -----------------------------------------------------------------------------------------------


def test_layers_are_written_out(tmp_path: Path):
    found = of("layers: every 3\n", tmp_path)
    assert found.words == ["layers=[0,3,6,9]"] and found.values[0]["layers"] == [0, 3, 6, 9]
    found = of("layers: all\nextract: {layers: all}\n", tmp_path, "layers=every 5")
    assert sorted(found.words) == ["extract.layers=[0,1,2,3,4,5,6,7,8,9,10,11]", "layers=[0,5,10]"]
    assert of("layers: all\n", tmp_path, "layers=[2]").values[0]["layers"] == [2]


def test_how_deep_a_model_is_comes_from_its_configuration(gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    lm = {"kind": "language", "source": str(gpt2), "revision": None, "trust_remote_code": False}
    assert depth(LM(**lm)) == 4
    assert depth(LM(**{**lm, "kind": "sentence"})) == 1
    with pytest.raises(BadInput, match=r"how many blocks package:x has is not known yet; write the layers as numbers"):
        depth(LM(**{**lm, "source": "package:x"}))


BROKEN = ['{"model_type": "gpt2", "n_layer": "many"}', '{"model_type": [1]}', '{"model_type": "nosuch"}', "[]", "{"]


@pytest.mark.parametrize("config", BROKEN)
def test_a_model_whose_configuration_is_broken_is_told(tmp_path: Path, config: str):
    (tmp_path / "config.json").write_text(config)
    lm = LM(kind="language", source=str(tmp_path), revision=None, trust_remote_code=False)
    with pytest.raises(BadInput, match=f"^{tmp_path} does not say how many blocks its model has: ") as refusal:
        depth(lm)
    assert "\n" not in str(refusal.value)
    with pytest.raises(BadInput, match=r"^how many blocks ~nobody/x has is not known yet"):
        depth(lm.model_copy(update={"source": "~nobody/x"}))


# --- the words that DVC gets ----------------------------------------------------------------------------------------

NASTY: list[Any] = [
    *(None, True, False, 0, -3, 10**9, 0.1, 5e-05, 1e20, "", " ", "null", "True", "NaN", "1e5", "007", "3.14"),
    *("it's", 'say "x"', "back\\slash", "ends in \\", "\\\\'", "a, b", "[1]", "{a: b}", "a=b", "a: b", "# no comment"),
    *("${layers}", "\\${layers}", "a\\\\${b}c", "~x", "+y", "*", "@file", "line\nbreak", "\\\n", "\t", "é€", "choice"),
    "SELECT id, v FROM \"t\" WHERE name = 'it''s' AND n > 3",
    "postgresql://me:pw@host:5432/db?x=1&y=%20",
    *(
        [],
        [[]],
        [1, "a, b", None, ["x"]],
        {},
        {"a": {"b": [1, {"c": "d's"}]}},
        [{"source": "a b.csv", "separator": ";"}],
    ),
]


def random_value(draw: random.Random, inner: int = 0) -> Any:
    signs = [*"ab'\"\\${}[]():,=@ ~+%\n\t#*&!|<>?/.-_1e5é", "${", "\\${", "null", "''", '\\"']
    kind = draw.randrange(7 if inner < 2 else 5)
    if kind == 5:
        return [random_value(draw, inner + 1) for _ in range(draw.randrange(4))]
    if kind == 6:
        return {name: random_value(draw, inner + 1) for name in draw.sample(["a", "b_1", "c-d"], draw.randrange(4))}
    text = "".join(draw.choice(signs) for _ in range(draw.randrange(10)))
    return [None, True, draw.randint(-9, 10**9), draw.random() * 10 ** draw.randint(-9, 20), text][kind]


def survives(old: dict[str, Any], new: dict[str, Any]) -> None:
    said = words(old, new)
    for word in said:  # as a shell hands it over
        assert shlex.split(shlex.join([word])) == [word]
    assert alike(applied(old, said)) == alike(new), said


@pytest.mark.parametrize("value", NASTY, ids=[f"{number}" for number in range(len(NASTY))])
def test_a_nasty_value_survives_dvc(value: Any):
    survives({"a": {"b": 1, "c": 2}}, {"a": {"b": value, "c": 2}})
    survives({"a": {"b": None}}, {"a": {"b": [value]}})
    survives({"a": {"b": None}}, {"a": {"b": {"c": value}, "new": value}})


def test_random_changes_survive_dvc():
    draw = random.Random(0)
    for _ in range(100):
        old = {"a": random_value(draw), "b": {"c": 1, "d": None}, "e": {"f": 1}}
        if "${" not in repr(old):  # which would mean another key to DVC whatever is changed
            survives(old, {"a": random_value(draw), "b": {"c": random_value(draw)}, "e": {"f": random_value(draw)}})


def test_only_what_differs_is_said(tmp_path: Path):
    assert of("seed: 0\ntrain:\n  k: auto\n  lr: 0.002\n", tmp_path).words == []
    assert of("train: {k: 8}\n", tmp_path, "train.k=9").words == ["train.k=9"]
    assert of("tune:\n  space:\n    lr: [1.0e-5, 0.1]\n", tmp_path).words == [
        "~tune.space.auxk",
        "~tune.space.lr",
        "+tune.space.lr=[1e-05,0.1]",
    ]
    assert of("by_layer: {9: {k: 48}}\n", tmp_path, "by_layer.9.k=32").values[0]["by_layer"] == {"9": {"k": 32}}


def test_several_values_are_several_experiments(tmp_path: Path):
    found = of("train:\n  k: choice(32, 64)\n  rule: choice(topk,batchtopk)\n", tmp_path, "train.lr=1e-3,5e-5")
    assert found.words == ["train.rule=choice(topk,batchtopk)", "train.k=choice(32, 64)", "train.lr=1e-3,5e-5"]
    trains = [values["train"] for values in found.values]
    assert len({(train["k"], train["rule"], train["lr"]) for train in trains}) == len(trains) == 8
    assert differences(found.values)[0] == "train.rule=topk train.k=32 train.lr=0.001"
    assert differences(found.values[:1]) == [""]


# --- params.yaml keeps its comments ---------------------------------------------------------------------------------


def test_the_file_comes_back_to_the_letter():
    assert comments.changed(TEXT, BASE, Path("params.yaml")) == TEXT


def test_changed_lines_alone_change():
    source = {"source": "a.csv", "text": 'it\'s, "so"'}
    changes = {
        "layers": [0],
        "train": {"k": 64, "lr": 5e-5},
        "fetch": {"corpus": {"sources": [source], "documents": 7}},
        "interpret": {"texts": {"sources": [{"source": "q.csv"}], "min_chars": 0}},
        "tune": {"space": {"k": {"min": 8, "max": 64}}},
        "by_layer": {"9": {"k": 48}},
    }
    values = over(BASE, changes)
    found = comments.changed(TEXT, values, Path("params.yaml"))
    assert found and yaml.safe_load(found)["fetch"] == values["fetch"]
    old, new = TEXT.splitlines(), found.splitlines()
    gone = [line for line in old if line not in new]
    assert len(gone) <= 11 and [line for line in new if line.startswith("#")] == [
        line for line in old if line.startswith("#")
    ]
    assert (
        "  k: 64                  # active latents a token; jumprelu: the target; relu, gated, reward: where they start"
        in new
    )
    back = comments.changed(found, BASE, Path("params.yaml"))
    assert back and alike(params.parse_yaml(back, Path("params.yaml"))) == alike(BASE)


# --- the checkout ---------------------------------------------------------------------------------------------------


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """git in a new repository that holds params.yaml, whose user has a name; the folder is the current one."""
    for name, value in environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "GIT_DIR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*said: str) -> str:
        return subprocess.run(["git", *said], check=True, capture_output=True, text=True).stdout

    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "mine.yaml").write_text("train:\n  k: 64\n")
    call("init", "-q")
    call("add", "-A")
    call("commit", "-qm", "start")
    return call


def put(key: str, value: Any) -> None:
    """A line of params.yaml with another value, and its comment."""
    old = f"\n{key}: {BASE[key]}"
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, f"\n{key}: {value}", 1))


def test_a_recipe_goes_over_what_is_committed(git: Callable[..., str]):
    checkout.check()
    assert checkout.base() == checkout.committed() == TEXT
    Path("params.yaml").write_text(TEXT + "# a note of mine\n")
    assert checkout.base() == TEXT + "# a note of mine\n"  # the values are the same

    put("seed", 5)
    with pytest.raises(BadInput, match=r"params.yaml has changes that are in no commit and no experiment"):
        checkout.base()
    git("commit", "-qam", "an experiment")
    git("update-ref", "refs/exps/exec/EXEC_MERGE", "HEAD")  # what a run that was killed leaves
    git("reset", "-q", "--soft", "HEAD~")
    with pytest.raises(BadInput, match=r"params.yaml has changes that are in no commit and no experiment"):
        checkout.base()
    git("commit", "-qam", "an experiment")
    git("update-ref", f"refs/exps/aa/{'b' * 38}/mine", "HEAD")
    git("reset", "-q", "--soft", "HEAD~")
    assert checkout.base() == TEXT  # the values are those of an experiment, which keeps them


def test_params_that_are_not_utf_8_are_told(git: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    latin, line = f"# café\n{TEXT}".encode("latin-1", "ignore"), "line 1; save it as UTF-8"
    monkeypatch.setattr(experiment, "run", lambda *_: pytest.fail("it was started"))

    Path("params.yaml").write_bytes(latin)
    with pytest.raises(BadInput, match=f"^params.yaml holds text that is not UTF-8, on {line}"):
        run_script.main("mine.yaml")

    git("commit", "-qam", "Latin-1")
    for script in (run_script.main, plan_script.main):
        with pytest.raises(BadInput, match=f"^params.yaml .*not UTF-8, on {line}"):
            script("mine.yaml")
    Path("params.yaml").unlink()
    with pytest.raises(BadInput, match=f"^params.yaml of the last commit holds text that is not UTF-8, on {line}"):
        run_script.main("mine.yaml")
    Path("params.yaml").write_text(TEXT)
    with pytest.raises(BadInput, match=r"^params.yaml has changes that are in no commit and no experiment"):
        checkout.base()

    git("commit", "-qam", "mended")
    git("update-ref", f"refs/exps/aa/{'b' * 38}/latin", "HEAD~")  # an experiment in Latin-1 is passed over
    put("seed", 5)
    with pytest.raises(BadInput, match=r"^params.yaml has changes that are in no commit and no experiment"):
        checkout.base()


def test_a_name_that_is_taken_gets_a_number(git: Callable[..., str]):
    head = git("rev-parse", "HEAD").strip()
    assert checkout.free_name("mine") == "mine"
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/mine", "HEAD")
    assert checkout.free_name("mine") == "mine-2"
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/sweep-1", "HEAD")
    assert checkout.free_name("sweep") == "sweep-2"
    git("update-ref", "--create-reflog", "-m", f"dvc-exp:{head}:{head}:other-3", "refs/exps/celery/stash", "HEAD")
    assert checkout.free_name("other") == "other-2"


def test_a_checkout_that_cannot_hold_an_experiment_is_told(
    git: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "home" / ".gitconfig").unlink()
    with pytest.raises(BadInput, match=r'git config --global user.name "Your Name" && git config --global user.email'):
        checkout.check()
    git("config", "user.name", "Someone")
    with pytest.raises(BadInput, match=r"git does not know who you are, .*: git config --global user.email"):
        checkout.check()
    git("config", "user.email", "someone@example.org")
    checkout.check()

    put("seed", 7)
    git("add", "-A")
    Path("params.yaml").write_text(TEXT)
    checkout.check()  # of params.yaml it is mended
    Path("mine.yaml").write_text("seed: 1\n")
    git("add", "-A")
    Path("mine.yaml").write_text("seed: 2\n")
    with pytest.raises(BadInput, match=r"mine.yaml is staged in git and has changed since"):
        checkout.check()
    git("reset", "-q", "--hard")

    git("checkout", "-qb", "other")
    put("seed", 5)
    git("commit", "-qam", "five")
    git("checkout", "-q", "-")
    put("seed", 6)
    git("commit", "-qam", "six")
    subprocess.run(["git", "merge", "-q", "other"], capture_output=True)
    with pytest.raises(BadInput, match=r"git is in the middle of a merge \(params.yaml\); end it first"):
        checkout.check()

    for folder, said in (("empty", "nothing is committed here yet"), ("none", "this folder is in no git repository")):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        if folder == "empty":
            git("init", "-q")
        with pytest.raises(BadInput, match=said):
            checkout.check()


# --- the run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def dvc(git: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In place of DVC: it notes its command, rewrites params.yaml as DVC does, and ends with `code`."""
    fake: dict[str, Any] = {"commands": [], "code": 0}

    def call(command: list[str]) -> int:
        fake["commands"].append(command)
        said = [word for flag, word in pairwise(command) if flag == "-S"]
        if not {"--queue", "--temp", "queue"} & set(command):
            values = applied(params.read(), said)
            Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
            git("add", "params.yaml")
        if isinstance(fake["code"], BaseException):
            raise fake["code"]
        return fake["code"]

    monkeypatch.setattr(experiment, "_dvc", call)
    return fake


def staged(git: Callable[..., str]) -> str:
    return git("diff", "--cached", "--name-only")


def test_a_run_leaves_the_comments(dvc: dict[str, Any], git: Callable[..., str], capsys: pytest.CaptureFixture[str]):
    run_script.main("mine.yaml", "-S", "seed=3", "train@9", "-m", "k=3, a note")
    (command,) = dvc["commands"]
    assert command[:5] == ["dvc", "exp", "run", "--name", "mine"]
    assert command[5:9] == ["-S", "train.k=64", "-S", "seed=3"]
    assert command[9:] == ["train@9", "--message", "k=3, a note"]
    text = Path("params.yaml").read_text()
    assert [new for new, old in zip(text.splitlines(), TEXT.splitlines(), strict=True) if new != old] == [
        "seed: 3",
        K_64,
    ]
    assert staged(git) == "" and "back before: git checkout HEAD" not in capsys.readouterr().err


@pytest.mark.parametrize("code", [255, KeyboardInterrupt()], ids=["refused", "broken off"])
def test_after_a_run_that_failed_the_file_is_as_it_was(
    dvc: dict[str, Any], git: Callable[..., str], code: Any, capsys: pytest.CaptureFixture[str]
):
    dvc["code"] = code
    with pytest.raises((SystemExit, KeyboardInterrupt)) as end:
        run_script.main("mine.yaml")
    assert Path("params.yaml").read_text() == TEXT and staged(git) == ""
    if code == 255:
        assert end.value.code == 255  # pyright: ignore[reportAttributeAccessIssue]
        assert "dvc ended with 255, and params.yaml is as it was before" in capsys.readouterr().err


def test_the_verdict_is_said_at_the_end(dvc: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    assert experiment._verdict() is None  # no report was written yet
    line = {"metric": "dead", "layer": 0, "value": 0.125, "min": None, "max": 0.1, "pass": False}
    write_json(Path("reports/scorecard.json"), {"passed": 3, "failed": 1, "targets": [line], "margins": []})
    run_script.main("mine.yaml")
    assert "run: 3 of 4 targets pass; layer 0: dead is 0.125, above its max 0.1\n" in capsys.readouterr().out


def test_a_run_without_a_report_has_no_verdict(dvc: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    """The scorecard that lies there is of an earlier run."""
    write_json(Path("reports/scorecard.json"), {"passed": 18, "failed": 0, "targets": []})
    run_script.main("mine.yaml", "--force", "train@9", "-m", "a note")
    said = capsys.readouterr().out
    assert "targets pass" not in said and "run: train@9 ran, and no report" in said
    assert experiment.parsed(["train@9", "report"]).reports and experiment.parsed(["--force", "-m", "a note"]).reports


def test_a_refused_recipe_starts_nothing(dvc: dict[str, Any]):
    Path("wrong.yaml").write_text("train:\n  k: 0\n")
    with pytest.raises(BadInput, match=r"^wrong.yaml:2: train.k is 0"):
        run_script.main("wrong.yaml")
    assert dvc["commands"] == [] and Path("params.yaml").read_text() == TEXT


def test_one_recipe_after_another_does_not_mix_them(dvc: dict[str, Any], git: Callable[..., str]):
    run_script.main("mine.yaml")
    git("commit", "-qam", "what DVC keeps of it")
    git("update-ref", f"refs/exps/aa/{'b' * 38}/mine", "HEAD")
    git("reset", "-q", "--soft", "HEAD~")
    Path("other.yaml").write_text("seed: 9\n")
    run_script.main("other.yaml")
    values = params.read()
    assert (values["seed"], values["train"]["k"]) == (9, BASE["train"]["k"])

    before = Path("params.yaml").read_text()
    git("commit", "-qam", "and of the other")
    git("update-ref", f"refs/exps/aa/{'b' * 38}/other", "HEAD")
    git("reset", "-q", "--soft", "HEAD~")
    run_script.main("mine.yaml", "--temp")
    assert Path("params.yaml").read_text() == before and dvc["commands"][-1][-1] == "--temp"


def test_a_sweep_is_queued_and_started(dvc: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    Path("sweep.yaml").write_text("train:\n  k: choice(32, 64)\n")
    run_script.main("sweep.yaml")
    assert dvc["commands"] == [
        ["dvc", "exp", "run", "--name", "sweep", "--queue", "-S", "train.k=choice(32, 64)"],
        ["dvc", "queue", "start"],
    ]
    assert "2 experiments run one after another" in capsys.readouterr().out
    run_script.main("sweep.yaml", "--queue")
    assert len(dvc["commands"]) == 3 and Path("params.yaml").read_text() == TEXT


def test_words_of_a_run(dvc: dict[str, Any]):
    run_script.main("-S", "train.k=48", "-n", "k48")  # without a recipe: checked, and the comments stay
    assert dvc["commands"] == [["dvc", "exp", "run", "--name", "k48", "-S", "train.k=48"]]
    Path("params.yaml").write_text(TEXT)
    run_script.main("mine.yaml", "train.k=48")
    assert dvc["commands"][-1] == ["dvc", "exp", "run", "--name", "mine", "-S", "train.k=48"]
    wrong = [["mine.yaml", "other.yaml"], [], ["mine.yaml", "-S", "k"], ["mine.yaml", "-S", "p.yaml:k=1"], ["-n"]]
    for line in wrong:
        with pytest.raises(BadUsage):
            run_script.main(*line)


def test_the_command_line_takes_options(monkeypatch: pytest.MonkeyPatch, dvc: dict[str, Any]):
    monkeypatch.setattr(sys, "argv", ["src/run.py", "mine.yaml", "-S", "seed=3", "--force"])
    door.run(run_script.main, options=True)
    assert dvc["commands"][0][-1] == "--force"


def test_dvc_is_run_by_this_python(git: Callable[..., str], capfd: pytest.CaptureFixture[str]):
    assert experiment._dvc(["dvc", "--version"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "run: dvc --version" and said[1].startswith("3.")


WAITS = """import signal, subprocess, sys, time
try:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("it runs", flush=True)
    process.wait()
except KeyboardInterrupt:
    raise SystemExit(7)
"""
STARTS = "import sys; from apps.recipes import experiment; raise SystemExit(experiment._dvc(['waits']))"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("behind", [False, True])
def test_whoever_ends_a_run_ends_dvc_first(tmp_path: Path, number: signal.Signals, behind: bool):
    """``behind``: as a script's `&` starts it, with Ctrl-C ignored."""
    (tmp_path / "waits.py").write_text(WAITS)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN if behind else signal.default_int_handler)
    try:
        process = subprocess.Popen([sys.executable, "-c", STARTS], env=env, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["run: waits\n", "it runs\n"]
    process.send_signal(number)  # to this process alone
    assert process.wait(30) == 7
    process.stdout.close()


# --- to its end -----------------------------------------------------------------------------------------------------

TINY = """# Vectors of 150 lines.
layers: [0]
machine:
  threads: 1
fetch:
  lm: {kind: vectors, source: null}
  corpus:
    sources:
      - {source: lines.jsonl, label: topic, id: id, text: text, vector: emb}
extract:
  shard_rows: 64
tune:
  run: false
train:
  from_tune: []
  rule: topk
  latents: 32
  k: 4
  auxk_latents: 8
  batch_size: 32
  epochs: 2
explain: {embedder: null}
cluster:
  map: {method: pca}
  stability: {bootstraps: 1}
"""


@pytest.mark.slow
def test_a_tiny_recipe_runs_to_its_end(tmp_path: Path):
    folder = tmp_path / "project"
    copied(folder, "apps", "src", "stages", "strata")
    small.make(tmp_path)
    shutil.move(tmp_path / "lines.jsonl", folder)
    (folder / "tiny.yaml").write_text(TINY)
    with forked.python(tmp_path / "python", {**environment(tmp_path / "home"), "STRATA_TRACKING": "off"}) as env:
        _a_tiny_recipe_runs_to_its_end(Project(folder, env))


def _a_tiny_recipe_runs_to_its_end(project: Project) -> None:
    folder = project.folder
    project.git("init", "-q")
    project.commit("start")

    # A source that is missing is found by the third stage: params.yaml is as it was.
    missing = "fetch.corpus.sources=[{source: none.jsonl, vector: emb}]"
    said = project.run("python", "-m", "src.run", "tiny.yaml", "-S", missing, code=255)
    assert "none.jsonl is missing" in said and ran(said)[-1] == "fetch_corpus"
    assert (folder / "params.yaml").read_text() == TEXT and "params.yaml" not in project.git("status", "--porcelain")

    said = project.run("python", "-m", "src.run", "tiny.yaml", "-S", "train.k=3", "-S", "seed=1")
    assert ran(said)[-1] == "track" and "run: dvc exp run --name tiny -S " in said
    assert list(project.experiments()) == ["tiny"] and project.dvc("status").strip().endswith("up to date.")
    text = (folder / "params.yaml").read_text()
    assert "# active latents a token" in text and params.read(folder / "params.yaml")["train"]["k"] == 3
    card = json.loads((folder / "reports/scorecard.json").read_text())
    assert {line["layer"] for line in card["targets"]} == {0}

    # The command that was printed is one that a user can type: the same words, and nothing is left to run.
    (command,) = [line for line in said.splitlines() if line.startswith("run: dvc exp run")]
    project.git("checkout", "-q", "HEAD", "--", "params.yaml")
    again = project.run(*shlex.split(command.removeprefix("run: ").replace("--name tiny", "--name again")))
    assert set(ran(again)) <= {"select", "track"}

    (folder / "sweep.yaml").write_text(TINY + "evaluate:\n  seeds: choice(2, 3)\n")
    project.git("checkout", "-q", "HEAD", "--", "params.yaml")
    said = project.run("python", "-m", "src.run", "sweep.yaml", "--queue", "-S", "train.k=3", "-S", "seed=1")
    assert "Queued experiment 'sweep-1'" in said and "Queued experiment 'sweep-2'" in said
    assert (folder / "params.yaml").read_text() == TEXT
