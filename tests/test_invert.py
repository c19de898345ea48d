"""Invert: what is reported is what the text does, and mistakes are told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from inverting import (
    CPU,
    DEAD,
    FACTS,
    KNOBS,
    LATENTS,
    LAYER,
    ROOT,
    SUN,
    TOKENS,
    WHERE,
    WORDS,
    greedy_knobs,
    interpreted,
    knobs,
    no_starts,
    source_of,
)

from stages import invert as script
from stages.select import layers
from strata.interpretation.read import check_origin, chosen
from strata.inversion import invert as room
from strata.inversion.invert import Source, invert
from strata.inversion.measure import measured
from strata.inversion.objective import Objective, embedded, states
from strata.inversion.pictures import drawable
from strata.inversion.vocabulary import Vocabulary, vocabulary
from strata.inversion.write import positions
from strata.lm.model import load
from strata.run import files, params
from strata.run.door import BadInput
from strata.sae import disk
from strata.sae.sae import SAE
from strata.seeds import generator

LAST = "data/layers/1.last.json"


@pytest.fixture(scope="module")
def source(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source_of(gpt2, tmp_path_factory.mktemp("latents") / "1")


@pytest.fixture(scope="module")
def words(source: Source) -> Vocabulary:
    return vocabulary(source.lm, "", TOKENS)


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(source: Source, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return invert(source, chosen(source.latents, 3, [], WHERE), knobs(), 0, tmp_path_factory.mktemp("work"))


def test_what_is_reported_is_what_the_text_does(source: Source, found: list[dict[str, Any]]):
    """By transformers alone: read the text, put BOS in front, run it, encode, look."""
    lm, tokenizer = source.lm, source.lm.tokenizer
    for row in found:
        for prompt in row["prompts"]:
            tokens = tokenizer(prompt["text"], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[lm.bos, *tokens]])  # pyright: ignore[reportGeneralTypeIssues]
            with torch.no_grad():
                hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[LAYER + 1][0, 1:]
            codes = source.sae.encode(hidden)
            values = codes.pattern.dense(codes.values)[:, row["latent"]]
            assert tokens == prompt["tokens"] and len(tokens) <= TOKENS
            assert prompt["values"] == pytest.approx(values.tolist(), rel=1e-4, abs=1e-4)
            assert prompt["activation"] == max(prompt["values"])
            assert "".join(prompt["pieces"]) == prompt["text"]


def test_specificity_is_over_the_mean_of_the_other_latents(source: Source, words: Vocabulary):
    again = measured(words, source.sae, "resid_post", LAYER, 0, torch.tensor([5, SUN, 7]))
    x = states(source.lm, "resid_post", LAYER, embedded(source.lm, torch.tensor([[5, SUN, 7]])))[0, 1:]
    codes = source.sae.encode(x)
    dense = codes.pattern.dense(codes.values)
    peak = dense[:, 0].argmax()
    others = (dense[peak].sum() - dense[peak, 0]) / (LATENTS - 1)
    if others > 0:
        assert again.specificity == pytest.approx(float(dense[peak, 0] / others), rel=1e-4)
    else:
        assert again.specificity is None


def test_every_method_has_its_rows(found: list[dict[str, Any]]):
    for row in found:
        methods = [(prompt["method"], prompt["start"]) for prompt in row["prompts"] if prompt["best"]]
        assert ("greedy", "corpus") in methods and ("greedy", "random") in methods
        assert methods.count(("soft", "random")) == 2
        (random,) = [prompt for prompt in row["prompts"] if prompt["method"] == "random"]
        assert random["calls"] == row["calls"] > 4
        points = [(prompt["activation"], prompt["cross_entropy"]) for prompt in row["prompts"] if prompt["front"]]
        assert points
        for activation, cost in points:
            assert not any(a > activation and c <= cost for a, c in points)
        for method in ("greedy", "soft", "random"):
            heights = [point["activation"] for point in row["curves"] if point["method"] == method]
            assert heights == sorted(heights) and len(heights) > 0


def test_a_summary_counts_what_beats_what(found: list[dict[str, Any]]):
    report = room.report(LAYER, found)
    assert [row["latent"] for row in report["latents"]] == [row["latent"] for row in found]
    for row in report["latents"]:
        assert row["ratio"] == row["activation"] / row["corpus_max"]
        assert row["beats_random"] == (row["activation"] > row["random"])
        assert row["beats_corpus"] == (row["activation"] > row["corpus_max"])
    for row, whole in zip(report["latents"], found, strict=True):
        for method in ("greedy", "soft", "random"):
            short, long = ([point for point in each["curves"] if point["method"] == method] for each in (row, whole))
            assert short[0] == long[0] and short[-1] == long[-1] and all(point in long for point in short)
            heights = [list(dict.fromkeys(point["activation"] for point in points)) for points in (short, long)]
            assert heights[0] == heights[1]  # what is left out says nothing new
    assert report["beats_random"] == sum(row["beats_random"] for row in report["latents"]) / len(found)
    json.dumps(report, allow_nan=False)


def test_a_prefix_stays(source: Source, tmp_path: Path):
    maxima = chosen(source.latents, [0], [], WHERE)
    (row,) = invert(source, maxima, knobs(keep_prefix="the cat"), 0, tmp_path)
    for prompt in row["prompts"]:
        assert prompt["text"].startswith("the cat ") and len(prompt["tokens"]) <= TOKENS

    # A soft prompt has a cosine for each token, and those of the prefix are their own embeddings.
    soft = [prompt["cosines"] for prompt in row["prompts"] if prompt["cosines"]]
    assert soft and all(cosines[:2] == [1, 1] for cosines in soft)
    assert len(positions([row])) == sum(len(prompt["tokens"]) for prompt in row["prompts"])


def test_no_search_but_one(source: Source, tmp_path: Path):
    """Random starts alone; neither soft search nor templates."""
    starts = {"corpus": 0, "random": 2, "pool": 4}
    only = knobs(
        greedy={**KNOBS["greedy"], "starts": starts, "fluency": [0.0]}, soft={**KNOBS["soft"], "starts": 0}, templates=0
    )
    (row,) = invert(source, chosen(source.latents, [0], [], WHERE), only, 0, tmp_path)
    kinds = [(prompt["method"], prompt["start"]) for prompt in row["prompts"]]
    assert kinds == [("corpus", "corpus"), ("greedy", "random"), ("greedy", "random"), ("random", None)]


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage reads, in `data/` of a folder of its own."""
    root = tmp_path_factory.mktemp("project")
    lm = root / "data" / "lm"
    source.lm.model.save_pretrained(lm)
    source.lm.tokenizer.save_pretrained(lm)
    files.write_json(lm / "meta.json", {"kind": "language", "stored": "folder", "trust_remote_code": False, **FACTS})
    interpreted(root / "data" / "latents" / "1", source.lm, source.sae)
    disk.save(root / "data" / "sae" / "1", source.sae, {})
    files.write_json(root / "data" / "clusters" / "1" / "meta.json", {"layer": 1})
    files.write_json(root / "data" / "clusters" / "1" / "selected.json", {"latents": [{"latent": 3}, {"latent": 0}]})
    return root


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the stage with changed knobs, into a folder of that name; return what is there."""
    monkeypatch.chdir(project)

    def go(target: str, seed: int = 0, lm: str = "data/lm", last: bool = True, **changes: Any) -> dict[str, str]:
        values = {**params.read(ROOT / "params.yaml"), "seed": seed, "invert": {**KNOBS, **changes}}
        values["machine"] |= {"device": "cpu", "threads": 1}
        (project / "params.yaml").write_text(yaml.safe_dump(values))
        sae, latents, clusters = "data/sae/1", "data/latents/1", "data/clusters/1"
        layers.write_last(project / "data" / "layers", [1] if last else [1, 0])
        script.main(sae, lm, latents, clusters, LAST, f"{target}/inverted", f"{target}/report.json")
        there = sorted(path for path in (project / target).rglob("*") if path.is_file())
        return {path.relative_to(project / target).as_posix(): files.sha256(path) for path in there}

    return go


def test_equal_seeds_give_equal_bytes_also_after_a_kill(run, project: Path, monkeypatch: pytest.MonkeyPatch):
    whole = run("whole")
    assert set(whole) == {
        "report.json",
        *(f"inverted/{name}.parquet" for name in ("prompts", "positions", "curves")),
        *(f"inverted/{name}" for name in ("meta.json", "summary.csv", "heatmap.png", "curves.png")),
    }
    assert run("again") == whole and not list((project / ".scratch").glob("invert-*"))
    other = run("other", seed=1)
    assert other["inverted/prompts.parquet"] != whole["inverted/prompts.parquet"]

    def killed(setting: Any, objective: Objective, sae: SAE) -> Any:
        if objective.latent == 0:
            raise KeyboardInterrupt
        return one(setting, objective, sae)

    one = room.one
    monkeypatch.setattr(room, "one", killed)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    assert not (project / "killed").exists()
    (half,) = (project / ".scratch").glob("invert-1-*/3.json")
    done: list[int] = []

    def counted(setting: Any, objective: Objective, sae: SAE) -> Any:
        done.append(objective.latent)
        return one(setting, objective, sae)

    monkeypatch.setattr(room, "one", counted)
    assert run("killed") == whole and done == [0] and not half.exists()


def test_the_tables(run, project: Path):
    run("tables")
    folder = project / "tables" / "inverted"
    report = files.read_json(project / "tables" / "report.json")
    prompts = pq.read_table(folder / "prompts.parquet").to_pylist()
    positions = pq.read_table(folder / "positions.parquet").to_pylist()
    assert [row["latent"] for row in report["latents"]] == [3, 0]  # as cluster ranked them
    assert len(positions) == sum(len(row["tokens"]) for row in prompts)
    assert all(row["piece"] for row in positions)
    soft = [row["prompt"] for row in prompts if row["method"] == "soft" and row["latent"] == 3]
    cosines = [row["cosine"] for row in positions if row["latent"] == 3 and row["prompt"] in soft]
    assert all(value is None or -1 <= value <= 1.001 for value in cosines) and any(value for value in cosines)
    summary = (folder / "summary.csv").read_text().splitlines()
    assert len(summary) == 3 and summary[0].startswith("latent,text,method,start,activation,corpus_max,ratio,random")
    assert files.read_json(folder / "meta.json")["latents"] == [3, 0]
    for name in ("heatmap", "curves"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_asked_for_is_skipped(run, project: Path):
    others = {"off": {"run": False}, "elsewhere": {"layers": [0]}, "not the last": {"layers": None, "last": False}}
    for target, changes in others.items():
        assert set(run(target, **changes)) == {"inverted/meta.json", "report.json"}
        assert files.read_json(project / target / "report.json") == {"skipped": True}


def test_the_last_layer_is_inverted_where_none_is_named(run):
    assert run("by default", layers=None) == run("named", layers=[1])


MUTE = """from transformers import GPT2LMHeadModel


class MuteLM(GPT2LMHeadModel):
    @classmethod
    def can_generate(cls):
        return False
"""


def test_a_model_that_writes_no_text_is_told_and_left(run, project: Path, capsys: pytest.CaptureFixture[str]):
    folder = project / "data" / "mute"
    shutil.copytree(project / "data" / "lm", folder)
    (folder / "mute.py").write_text(MUTE)
    config = files.read_json(folder / "config.json")
    files.write_json(folder / "config.json", {**config, "auto_map": {"AutoModelForCausalLM": "mute.MuteLM"}})
    files.write_json(folder / "meta.json", {"kind": "language", "stored": "folder", "trust_remote_code": True, **FACTS})
    assert set(run("mute", lm="data/mute")) == {"inverted/meta.json", "report.json"}
    why = "not applicable: MuteLM does not generate text"
    assert files.read_json(project / "mute" / "report.json") == {"skipped": True, "why": why}
    assert capsys.readouterr().err.endswith(f"skipped, {why}\n")


def test_latents_are_chosen_by_rank_by_name_or_by_importance(source: Source):
    latents = source.latents
    assert list(chosen(latents, 2, [3, 0, 2], WHERE)) == [3, 0]
    assert list(chosen(latents, [4, 2], [3, 0], WHERE)) == [4, 2]
    found = list(chosen(latents, 9, [DEAD, 3], WHERE))
    assert DEAD not in found and len(found) == LATENTS - 1
    assert found[0] == 3 and found[-1] == 1, "first the ranked, last the one that filters drop"


# --- what is turned away ----------------------------------------------------------------------------------------------


def test_mistakes_are_told(source: Source, gpt2: Path):
    lm, latents = source.lm, source.latents
    with pytest.raises(BadInput, match=r"invert.latents names latent 99, but .* has 6: 0 to 5"):
        chosen(latents, [99], [], WHERE)
    with pytest.raises(BadInput, match=r"invert.latents names latent 5, which is dead"):
        chosen(latents, [DEAD], [], WHERE)
    with pytest.raises(BadInput, match=r"names latents twice: \[2, 2\]"):
        chosen(latents, [2, 2], [], WHERE)
    with pytest.raises(BadInput, match=r"keep_prefix: 'the cat sat on a mat' is 6 tokens, which leaves none of .* 6"):
        vocabulary(lm, "the cat sat on a mat", TOKENS)
    with pytest.raises(BadInput, match=r"70 tokens and BOS are more than the 64 that .* reads"):
        vocabulary(lm, "the " * 70, 6)
    with pytest.raises(BadInput, match=r"64 tokens and BOS are more than the 64"):
        vocabulary(lm, "", 64)
    with pytest.raises(BadInput, match=r"'<eos> the' holds a special token"):
        vocabulary(lm, "<eos> the", TOKENS)
    with pytest.raises(BadInput, match=r"of the model tiny, not of other"):
        check_origin(latents, (6, 32), {**FACTS, "name": "other"})
    with pytest.raises(BadInput, match=r"is of 6 latents of width 32, but the SAE has 5 of width 32"):
        check_origin(latents, (5, 32), FACTS)
    with pytest.raises(BadInput, match=r"invert.tokens is 0"):
        knobs(tokens=0)
    with pytest.raises(BadInput, match=r"invert: no search has a start; set greedy.starts.corpus"):
        no_starts(0)
    with pytest.raises(BadInput, match=r"pool is 4, but 9 starts are to be taken from it"):
        no_starts(9)
    with pytest.raises(BadInput, match=r"greedy.fluency"):
        greedy_knobs(fluency=[])


def test_a_vocabulary_without_a_token_is_refused(gpt2: Path, monkeypatch: pytest.MonkeyPatch):
    lm = load(gpt2, torch.float32, CPU)
    monkeypatch.setattr(Vocabulary, "survive", lambda _, prompts: torch.zeros(len(prompts), dtype=torch.bool))
    with pytest.raises(BadInput, match=r"no token of .* comes back when its text is read"):
        vocabulary(lm, "", TOKENS)


def test_a_prefix_that_swallows_what_follows_is_refused(source: Source, monkeypatch: pytest.MonkeyPatch):
    words = vocabulary(source.lm, "the", TOKENS)
    monkeypatch.setattr(Vocabulary, "survive", lambda _, prompts: torch.zeros(len(prompts), dtype=torch.bool))
    with pytest.raises(BadInput, match=r"keep_prefix: 'the' and random tokens after it are other tokens"):
        words.random(2, TOKENS, generator(0))


def test_special_tokens_are_never_chosen(words: Vocabulary):
    assert words.allowed.nonzero().flatten().tolist() == list(WORDS)


def test_a_sign_that_no_font_has_is_a_box():
    assert drawable("cat 艺 ж\n") == "cat □ ж□"
