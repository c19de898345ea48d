"""Explain: it adds what a language model says to what interpret found, and passes over no code for it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import test_interpret
import yaml
from conftest import WORDS

import strata
from strata.front.activations import LayerActivations
from strata.front.latents import Latents as Front
from strata.interpretation import explaining, tables
from strata.interpretation.explain import EXPLANATION_TOKENS, _asking
from strata.interpretation.explain_knobs import Explain
from strata.interpretation.explanations import case, split
from strata.interpretation.interpret import interpret
from strata.interpretation.read import EXPLAINED, Latents, open_latents
from strata.interpretation.text import read_text
from strata.interpretation.writers import Chat, endless
from strata.run.door import BadInput
from strata.run.files import read_json
from strata.run.params import check as checked


def knobs(**changes: Any) -> Explain:
    """The default params for layer 0, with 12 latents and the embedder of this test."""
    values = yaml.safe_load((test_interpret.ROOT / "params.yaml").read_text(encoding="utf-8"))["explain"]
    given = {"model": "lm", "layers": [0], "latents": 12, "embedder": "words", **changes}
    return checked({**values, **given}, Explain, "params.yaml: explain")


def replies(prompts: Sequence[Chat], limit: int) -> list[str]:
    """Words, or a number, that follow from the question alone."""
    drawn = [np.random.default_rng(list(hashlib.sha256(repr(prompt).encode()).digest())) for prompt in prompts]
    if limit < EXPLANATION_TOKENS:
        return [str(random.integers(0, 11)) for random in drawn]
    return [" ".join([*random.choice(WORDS, 3, replace=False), f"zq{random.integers(9)}"]) for random in drawn]


def embed(texts: Sequence[str]) -> np.ndarray:
    vectors = np.array([[word in text.split() for word in WORDS] for text in texts], float) + 1e-3
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> Any:
    """Latents as interpret wrote them, the text that they stand on, and what explain wrote of them."""
    folder = tmp_path_factory.mktemp("explain")
    source = test_interpret.make_source(folder / "rows", gpt2, *test_interpret.texts())
    (folder / "work").mkdir()
    report = interpret(
        test_interpret.make_sae(), source, test_interpret.knobs(), 0, folder / "latents", folder / "work"
    )
    here = SimpleNamespace(folder=folder, source=source, interpreted=report)
    here.latents = open_latents(folder / "latents")
    here.report = explained(here, "explained", knobs())
    return here


def explained(made: Any, name: str, asked: Explain) -> dict[str, Any]:
    """Run explain into the folder ``name``, with the replies and the embedder of this test."""
    (work := made.folder / f"{name}-work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explaining, "open_writer", lambda *_: _asking(replies, "lm", endless))
        patch.setattr(explaining, "embedder", lambda _: embed)
        patch.chdir(made.folder)
        return explaining.explain_latents(
            made.latents, made.source.contexts, made.source.vocabulary, asked, 0, made.folder / name, work
        )


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_words_are_added_to_what_interpret_found(made: Any):
    """The rows of interpret stay as they are, but for the embedding score of rules; the words follow them."""
    before, after = rows(made.folder / "latents", "explanations"), rows(made.folder / "explained", "explanations")
    words = [row for row in after if row["source"] == "lm"]
    found = {row["latent"] for row in words}
    assert len(found) == len(words) == 12 and all(row["text"] for row in words) and len(after) == len(before) + 12
    for row, same in zip([row for row in after if row["source"] != "lm"], before, strict=True):
        embedded = row["source"] == "rule" and row["latent"] in found
        assert (row["embedding"] is not None) == (embedded and row["text"] is not None)
        assert {**row, "embedding": None, "embedding_chance": None} == same
    order = [(row["latent"], ("rule", "label", "lm").index(row["source"])) for row in after]
    assert order == sorted(order)


def test_the_most_important_scorable_latents_are_explained(made: Any):
    items = made.latents.meta["interpret"]["items"]
    statistics, rules = rows(made.folder / "latents", "statistics"), rows(made.folder / "latents", "explanations")
    full = [row["items"] == items for row in rules if row["source"] == "rule"]
    order = sorted(statistics, key=lambda row: (not (row["kept"] and full[row["latent"]]), -row["importance"]))
    words = [row["latent"] for row in rows(made.folder / "explained", "explanations") if row["source"] == "lm"]
    assert words == sorted(row["latent"] for row in order[:12])

    explained(made, "some", knobs(range=[20, 23], latents=2))
    few = [row["latent"] for row in rows(made.folder / "some", "explanations") if row["source"] == "lm"]
    assert len(few) == 2 and set(few) <= {20, 21, 22}


def test_words_are_judged_on_the_windows_that_rules_are(made: Any, tmp_path: Path):
    """The documents that the rules were learned from are those that the language model sees."""
    meta, words = made.latents.meta, made.source.vocabulary
    items = meta["interpret"]["items"]
    text = read_text(made.source.contexts, tmp_path, meta["interpret"]["window"])
    halves = split(text, words.opening, meta["seed"])
    latent = next(row["latent"] for row in rows(made.folder / "explained", "explanations") if row["source"] == "lm")
    mine = case(made.latents.columns(latent, latent + 1), latent, halves, text, 10, 5, items, words.pieces)
    (again,) = [one for one in _cases(made, tmp_path) if one.latent == latent]
    assert again == mine
    (rule,) = [row for row in tables.read(made.latents) if row.latent == latent and row.source == "rule"]
    assert rule.items == len(mine.scored) == items == 40


def _cases(made: Any, work: Path) -> list[Any]:
    rules = [one for one in tables.read(made.latents) if one.source == "rule"]
    return explaining._cases(made.latents, rules, made.source.contexts, made.source.vocabulary, knobs(), work)


def test_the_report_has_words_and_the_rules_of_the_same_latents(made: Any):
    found = made.report
    assert found["lm"]["latents"] == found["rule"]["latents"] == found["lm"]["explained"] == 12
    assert found["named"] == len(rows(made.folder / "explained", "names")) >= made.interpreted["named"]
    assert found["lm"]["embedding"]["latents"] == 12 and "embedding" not in made.interpreted["rule"]


def test_names_are_chosen_among_all(made: Any):
    over = open_latents(made.folder / "latents", made.folder / "explained")
    by = {row["latent"]: row["named_by"] for row in rows(made.folder / "explained", "names")}
    scores = {row["latent"]: row for row in rows(made.folder / "explained", "explanations") if row["source"] == "lm"}
    for latent, row in scores.items():
        value, chance = row["balanced_accuracy"], row["balanced_accuracy_chance"]
        assert (by.get(latent) == "lm") == (value - max(chance, 0.5) >= 0.15)
    own = made.latents.names()
    assert {latent: name for latent, name in over.names().items() if by[latent] != "lm"}.items() <= own.items()
    table = over.statistics()
    assert table["named_by"].to_pylist() == [by.get(latent) for latent in range(test_interpret.LATENTS)]


def test_it_says_the_same_twice(made: Any):
    assert explained(made, "again", knobs()) == made.report
    for name in ("explanations.parquet", "names.parquet", "meta.json"):
        assert (made.folder / "again" / name).read_bytes() == (made.folder / "explained" / name).read_bytes()


@pytest.mark.parametrize("changes", [{"model": None}, {"layers": []}, {"layers": [3]}])
def test_where_nothing_is_to_be_explained_the_tables_are_handed_on(made: Any, tmp_path: Path, changes: dict[str, Any]):
    assert explaining.asked(made.latents, knobs())
    asked = knobs(**changes)
    assert not explaining.asked(made.latents, asked)
    found = explaining.hand_on(made.latents, asked, tmp_path)
    assert found == {"layer": 0, "named": made.interpreted["named"]}
    for name in EXPLAINED:
        assert (tmp_path / f"{name}.parquet").read_bytes() == (made.folder / "latents" / f"{name}.parquet").read_bytes()
    over = open_latents(made.folder / "latents", tmp_path)
    assert over.names() == made.latents.names() and over.explained is not None


def test_explanations_of_other_latents_are_refused(made: Any, tmp_path: Path):
    for path in ("meta.json", *(f"codes/{path.name}" for path in (made.folder / "latents" / "codes").iterdir())):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((made.folder / "latents" / path).read_bytes())
    meta = read_json(tmp_path / "meta.json")
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "seed": 1}))
    with pytest.raises(BadInput, match=r"explains other latents than those in .*run explain again"):
        open_latents(tmp_path, made.folder / "explained")
    (skipped := tmp_path / "explained").mkdir()
    (skipped / "meta.json").write_text('{"skipped": true}')
    with pytest.raises(BadInput, match="explains other latents"):
        open_latents(made.folder / "latents", skipped)


def test_another_text_is_refused(made: Any):
    contexts = SimpleNamespace(meta={"rows": 7})
    with pytest.raises(BadInput, match="rows, but 7 are stored; run interpret again"):
        explaining.check(made.latents, contexts)  # pyright: ignore[reportArgumentType]
    explaining.check(made.latents, made.source.contexts)


def test_the_front_door_explains_what_is_opened(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The latents stay as they are, and interpret does not run again."""
    monkeypatch.setattr(explaining, "open_writer", lambda *_: _asking(replies, "lm", endless))
    monkeypatch.setattr("strata.interpretation.interpret.interpret", lambda *_: pytest.fail("interpret ran again"))
    monkeypatch.chdir(tmp_path)
    source = made.source
    on = LayerActivations(source.activations, source.contexts, tmp_path, source.vocabulary.lm)
    opened: Latents = made.latents
    found = Front(test_interpret.make_sae(), on, opened, opened.statistics().to_pandas())
    named = strata.explain(found, latents=12, embedder=None)
    said = named.explanations()
    assert (said["source"] == "lm").sum() == 12 and not (found.explanations()["source"] == "lm").any()
    assert named.opened.folder == opened.folder and {"name", "named_by", "explanation"} <= set(named.table)
    again = strata.explain(named, latents=2, embedder=None, folder=tmp_path / "kept")
    assert (again.explanations()["source"] == "lm").sum() == 2 and (tmp_path / "kept" / "meta.json").is_file()
    with pytest.raises(BadInput, match=r"explain\.shwn is not a known key"):
        strata.explain(found, shwn=3)
    with pytest.raises(BadInput, match="model is None"):
        strata.explain(found, model=None)  # pyright: ignore[reportArgumentType]


def test_more_scores_and_latents_at_random_on_short_windows(made: Any):
    report = explained(made, "more", knobs(latents=4, drawn=3, window=6, scores=["fuzzing", "intruder"]))
    words = [row for row in rows(made.folder / "more", "explanations") if row["source"] == "lm"]
    important = [row["latent"] for row in rows(made.folder / "explained", "explanations") if row["source"] == "lm"]
    assert report["lm"]["latents"] == len(words) == 7
    assert sum(row["latent"] in important for row in words) >= 4
    assert all(row["fuzzing"] is not None and row["fuzzing_chance"] is not None for row in words)
    assert {row["intruder_chance"] for row in words} == {0.2} and report["lm"]["intruder"]["chance"] == pytest.approx(
        0.2
    )
    assert made.report["lm"]["fuzzing"] == made.report["lm"]["intruder"] == made.report["rule"]["fuzzing"]
    assert made.report["lm"]["fuzzing"]["latents"] == 0, "no score that was not asked for"

    explained(made, "scored-again", knobs(latents=4, drawn=3, window=6, scores=["fuzzing", "intruder"]))
    assert rows(made.folder / "scored-again", "explanations") == rows(made.folder / "more", "explanations")
