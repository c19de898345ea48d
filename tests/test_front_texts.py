"""Texts of any source in Python, and their splits: the same documents and splits as the pipeline's."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import strata
from strata.corpus import corpus, read
from strata.corpus.knobs import Corpus


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = pd.DataFrame({"title": [f"text {n}" for n in range(40)], "topic": ["a", "a", "a", "b"] * 10})
    rows.to_csv(tmp_path / "news.csv", index=False)
    return tmp_path / "news.csv"


def built(folder: Path, source: Path, **changes: Any) -> pd.DataFrame:
    """The corpus that the stage makes of a table."""
    section = {"documents": None, "min_chars": 0, "max_chars": None, "near_duplicates": None, "balance": None}
    section |= {"max_bad_rows": 0, "validation": 0.1, "test": 0.2, "stratify": True, **changes}
    section["sources"] = [{"source": str(source), "text": "title", "label": "topic"}]
    folder.mkdir()
    corpus.build(Corpus.model_validate(section), 5, folder)
    return pd.read_parquet(folder / "corpus.parquet")


@pytest.mark.parametrize("stratify", [True, False])
def test_the_split_is_that_of_the_pipeline(table: Path, tmp_path: Path, stratify: bool):
    ours = built(tmp_path / "corpus", table, stratify=stratify)
    rows = pd.read_csv(table)
    found = strata.split(rows, "topic" if stratify else None, validation=0.1, test=0.2, seed=5)
    for name in read.SPLITS:
        assert getattr(found, name)["title"].tolist() == ours.loc[ours["split"] == name, "text"].tolist()
    assert [len(part) for part in found] == [28, 4, 8]
    if stratify:
        assert found.test["topic"].value_counts().to_dict() == {"a": 6, "b": 2}


def test_each_kind_of_items_stays_what_it_is():
    numbers = np.arange(10)
    parts = strata.split(numbers, seed=1, validation=0, test=0.2)
    assert [len(part) for part in parts] == [8, 0, 2] and sorted(np.concatenate(parts)) == list(range(10))
    assert [part.tolist() for part in strata.split(torch.arange(10), seed=1, validation=0, test=0.2)] == [
        part.tolist() for part in parts
    ]
    assert strata.split(range(10), seed=1, validation=0, test=0.2).test == parts.test.tolist()
    assert strata.split(range(10), seed=2, validation=0, test=0.2).train != parts.train.tolist()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"items": "abc"}, "items is the text 'abc'; it must be a table"),
        ({"items": [1, 2, 3], "test": 1.0}, r"test is 1\.0; it must be a share"),
        ({"items": [1, 2, 3], "test": 0.6, "validation": 0.5}, "leave nothing to train on"),
        ({"items": [1, 2]}, "2 documents are too few"),
        ({"items": [1, 2, 3], "labels": ["a"]}, "1 labels are given for 3"),
        ({"items": [1, 2, 3], "labels": "topic"}, "labels is 'topic', which is no column"),
        ({"items": [1, 2, 3], "seed": -1}, "seed is -1"),
    ],
)
def test_items_that_cannot_be_split(given: dict[str, Any], said: str):
    with pytest.raises(strata.BadInput, match=said):
        strata.split(**given)


def test_texts_come_one_by_one_and_in_batches(table: Path, tmp_path: Path):
    assert list(strata.texts(table, text="title")) == [f"text {n}" for n in range(40)]
    batches = list(strata.texts(str(table), text="title", batch=3, most=8))
    assert [len(batch) for batch in batches] == [3, 3, 2] and batches[2] == ["text 6", "text 7"]

    (tmp_path / "more.txt").write_text("one\n\n\ntwo\n")
    both = strata.texts({"source": str(table), "text": "title"}, {"source": str(tmp_path / "more.txt")}, most=5)
    assert list(both) == ["text 0", "one", "text 1", "two", "text 2"]


def test_documents_make_a_table(table: Path):
    found = pd.DataFrame(strata.documents(table, text="title", label="topic"))
    assert found["label"].tolist() == ["a", "a", "a", "b"] * 10 and {"title", "text", "id"} <= set(found)


def test_the_wikipedia_that_a_package_carries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    (batch,) = strata.texts("package:gensim-wikipedia", batch=4, most=4)
    assert len(batch) == 4 and all(isinstance(text, str) and text for text in batch)


@pytest.mark.parametrize(
    ("source", "keys", "said"),
    [
        ((), {}, "there is no source; it must be a file"),
        ((3,), {}, "source is 3; it must be a file"),
        (("nowhere.csv",), {}, "nowhere.csv is missing"),
        (("package:nothing",), {}, "package:nothing is not a known text"),
        (({"source": "x.csv", "txt": "title"},), {}, "source.txt is not a known key; did you mean source.text"),
        (("x.csv",), {"batch": 0}, "batch is 0; it must be a whole number of at least 1"),
        (("x.csv",), {"most": 1.5}, r"most is 1\.5"),
    ],
)
def test_sources_that_there_are_not(source: tuple[Any, ...], keys: dict[str, Any], said: str):
    with pytest.raises(strata.BadInput, match=said):
        list(strata.texts(*source, **keys))
