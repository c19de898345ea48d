"""The functions for a notebook: what goes in comes out, numbers by brute force, and nothing else is disturbed."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure
from test_vectors import build, stored

from strata import notebook
from strata.notebook import Vectors
from strata.run.door import BadInput
from strata.sae.sae import SAE

ATOMS, WIDTH = 24, 16


@pytest.fixture(scope="module")
def planted() -> Vectors:
    """Two of 24 unit atoms each, on an offset."""
    random = np.random.default_rng(0)
    atoms = random.standard_normal((ATOMS, WIDTH))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((3000, ATOMS))
    for row in codes:
        row[random.choice(ATOMS, 2, replace=False)] = 1 + random.random(2)
    x = (codes @ atoms + 0.2).astype(np.float32)
    return Vectors(x, [f"v{n}" for n in range(len(x))], [f"text {n}" for n in range(len(x))])


@pytest.fixture(scope="module")
def trained(planted: Vectors) -> notebook.Trained:
    return notebook.train(planted, latents=48, k=2, epochs=20, auxk_latents=8)


def test_texts_are_embedded_as_the_model_does_bare(capsys: pytest.CaptureFixture[str]) -> None:
    from sentence_transformers import SentenceTransformer

    from strata import sentences

    texts = ["The treaty was signed in Paris.", "Bread rises in a hot oven."]
    found = notebook.encode_texts(texts, ids=["a", "b"])
    bare = SentenceTransformer(str(sentences.find(notebook.MINILM)), device="cpu").encode(texts)
    assert found.ids == ["a", "b"] and found.texts == texts
    assert np.allclose(found.x, bare, atol=1e-6) and np.allclose(np.linalg.norm(found.x, axis=1), 1, atol=1e-5)
    assert capsys.readouterr().err.count("longer than") == 0

    said = pd.Series([*texts, "The river rises. " * 100], index=[7, 8, 9])  # 4 tokens each, and two special ones
    same = notebook.encode_texts(said, ids=np.array([1, 2, 3]))
    assert same.ids == ["1", "2", "3"] and same.texts == said.tolist()
    assert np.allclose(same.x[:2], found.x, atol=1e-6)
    assert "1 of 3 texts are longer than the 256 tokens" in (err := capsys.readouterr().err)
    assert "146 tokens at their ends are not read" in err
    assert np.asarray(same) is not None and np.asarray(same).shape == (3, 384) and np.array(same, np.float64).sum()


TEXT = ["a", "b"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"texts": "Bread rises."}, "texts is the text 'Bread rises.'; it must be a list of texts"),
        ({"texts": b"bread"}, "texts is of type bytes"),
        ({"texts": None}, "texts is None"),
        ({"texts": {"a": "b"}}, "texts is of type dict"),
        ({"texts": pd.DataFrame({"text": TEXT})}, "texts is of type DataFrame"),
        ({"texts": []}, "no text to embed"),
        ({"texts": iter(())}, "no text to embed"),
        ({"texts": pd.Series([], dtype=object)}, "no text to embed"),
        ({"texts": ["a", None]}, r"texts\[1\] is None, which is no text"),
        ({"texts": pd.Series(["a", np.nan])}, r"texts\[1\] is nan"),
        ({"texts": (text for text in ["a", b"b"])}, r"texts\[1\] is of type bytes"),
        ({"texts": [["a"]]}, r"texts\[0\] is of type list"),
        ({"texts": np.array([["a", "b"]])}, r"texts\[0\] is of type ndarray"),
        ({"texts": TEXT, "ids": ["a"]}, "1 ids are given for 2 vectors"),
        ({"texts": TEXT, "ids": "ab"}, "ids is the text 'ab'"),
        ({"texts": TEXT, "model": None}, "model is None; it must be package:NAME"),
        ({"texts": TEXT, "model": "package:nothing"}, "not a known embedder"),
        ({"texts": TEXT, "normalize": "l2"}, "normalize is the text 'l2'"),
        ({"texts": TEXT, "dtype": torch.int64}, r"dtype is torch\.int64"),
        ({"texts": TEXT, "dtype": "float32"}, "dtype is 'float32'"),
        ({"texts": TEXT, "device": "gpu"}, "device is 'gpu'; it must be cpu or cuda"),
        ({"texts": TEXT, "revison": "main"}, "'revison'; .*did you mean revision"),
    ],
)
def test_texts_that_are_none(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        notebook.encode_texts(**given)


def test_what_is_saved_is_loaded_and_a_source_of_the_pipeline(planted: Vectors, tmp_path: Path) -> None:
    few = Vectors(planted.x[:9], planted.ids[:9], planted.texts[:9])
    notebook.save(few, tmp_path / "v.parquet")
    again = notebook.load(tmp_path / "v.parquet")
    assert np.array_equal(again.x, few.x) and again.ids == few.ids and again.texts == few.texts
    build(tmp_path / "c", {"source": str(tmp_path / "v.parquet"), "id": "id", "vector": "vector", "text": "text"})
    assert stored(tmp_path / "c") == {id: x.tolist() for id, x in zip(few.ids, few.x, strict=True)}
    (tmp_path / "broken.parquet").write_text("no")
    for path in ("broken.parquet", "nowhere.parquet"):
        with pytest.raises(BadInput, match="holds no vectors"):
            notebook.load(tmp_path / path)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"vector": [[1.0, 2.0], None, [5.0, 6.0], [7.0, 8.0, 9.0, 10.0]]}, "no usable vector: b: NULL"),
        ({"vector": [[1.0, 2.0], [3.0, 4.0, 5.0], [5.0, 6.0], [7.0, 8.0]]}, "b: 3 numbers, not 2"),
        ({"vector": [[1.0, 2.0], [3.0, None], [5.0, 6.0], [7.0, 8.0]]}, "b: NaN or infinity"),
        ({"vector": [[1.0, 2.0], [], [5.0, 6.0], [7.0, 8.0]]}, "b: no list of numbers"),
        ({"vector": ["x"] * 4}, "a: no list of numbers"),
        ({"vector": [[1.0]] * 4, "text": [1, 2, 3, 4]}, "row 1 holds 1, which is not text"),
        ({"vector": [[1.0]] * 4, "id": [b"\xff"] * 4}, "row 1 holds the bytes"),
        ({"body": ["x"] * 4}, "gives no column 'vector'|holds no vectors"),
    ],
)
def test_no_id_gets_the_vector_of_another(tmp_path: Path, columns: dict[str, Any], why: str) -> None:
    table = {"id": list("abcd"), "text": [""] * 4, **columns}
    pq.write_table(pa.table(table), tmp_path / "v.parquet")
    with pytest.raises(BadInput, match=why):
        notebook.load(tmp_path / "v.parquet")


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        (pa.list_(pa.float16()), ["a", "b"]),
        (pa.large_list(pa.float64()), [1.0, 2.0]),
        (pa.list_(pa.int8(), 2), [b"a", b"b"]),
        (pa.binary(), ["a", None]),
    ],
)
def test_vectors_of_other_types(tmp_path: Path, kind: Any, ids: list[Any]) -> None:
    rows: list[Any] = [[1, 2], [3, 4]]
    if kind == pa.binary():
        rows = [np.array(row, "<f4").tobytes() for row in rows]
    pq.write_table(pa.table({"id": ids, "vector": pa.array(rows, kind), "text": ["x", None]}), tmp_path / "v.parquet")
    found = notebook.load(tmp_path / "v.parquet")
    assert found.x.tolist() == [[1, 2], [3, 4]] and found.texts == ["x", ""]
    assert found.ids in (["a", "b"], ["1", "2"], ["a", "row 2"])


def test_rows_of_a_database(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"
    rows: list[Any] = [
        (1, "[1, 2]", "one"), (2, np.array([3, 4], "<f4").tobytes(), None), (3, None, "x"), (4, "[5]", "y"),
    ]  # fmt: skip
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE items (id INTEGER, vector, body TEXT)")
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
    connection.close()
    for url in (str(path), f"sqlite:///{path}"):
        found, bad = notebook.from_database(url, "SELECT * FROM items ORDER BY id", text="body")
        assert found.x.tolist() == [[1, 2], [3, 4]] and found.ids == ["1", "2"] and found.texts == ["one", ""]
        assert bad == ["3: NULL", "4: 1 numbers, not 2"]
    for query, most_bad, why in (
        ("SELECT * FROM items", 1, "more than 1 rows"),
        ("SELECT id, body FROM items", 9, "no column 'vector'; it gives id, body"),
        ("DELETE FROM items", 9, "readonly|no rows"),
        ("SELECT * FROM items WHERE id = 3", 9, "no usable vector"),
    ):
        with pytest.raises(BadInput, match=why):
            notebook.from_database(str(path), query, most_bad=most_bad)
    with pytest.raises(BadInput, match="is not there"):
        notebook.from_database(str(tmp_path / "none.sqlite"), "SELECT 1")


def test_training_beats_its_controls_on_what_it_has_not_seen(trained: notebook.Trained) -> None:
    table: Any = trained.quality.set_index("what")["fvu"]
    assert list(table.index) == ["SAE", "PCA, 2 components", "untrained", "mean"]
    assert table["SAE"] < 0.25 * table["PCA, 2 components"]
    assert table["mean"] == pytest.approx(1, abs=0.05)
    assert {"step", "fvu", "l0", "validation_fvu"} <= set(trained.history.columns)


def test_the_same_again_and_nothing_else_is_disturbed(planted: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Vectors(planted.x[:600], planted.ids[:600], planted.texts[:600])
    monkeypatch.chdir("/")  # nothing hangs on where the notebook is
    before = torch.random.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy(), few.x.copy()
    one, other = (notebook.train(few, latents=32, k=2, epochs=2, auxk_latents=8) for _ in range(2))
    assert torch.equal(one.sae.encoder, other.sae.encoder) and one.features.equals(other.features)
    assert one.quality.equals(other.quality)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state(legacy=False)["state"]["key"])
    assert np.array_equal(before[2], few.x)
    assert not torch.equal(one.sae.encoder, notebook.train(few, 32, 2, 2, seed=1, auxk_latents=8).sae.encoder)


def test_features_by_brute_force(planted: Vectors, trained: notebook.Trained) -> None:
    sae = trained.sae
    codes = sae.encode(torch.from_numpy(planted.x))
    dense = codes.pattern.dense(codes.values).numpy()
    found: Any = trained.features
    assert np.array_equal(found["active"], (dense > 0).sum(0))
    assert np.allclose(found["mean"], dense.sum(0) / np.maximum((dense > 0).sum(0), 1), atol=1e-5)
    assert np.allclose(found["max"], dense.max(0), atol=1e-6)
    for latent in range(sae.latents):
        expected = planted.ids[int(dense[:, latent].argmax())] if dense[:, latent].any() else ""
        assert found["strongest"][latent] == expected
    latent = int(np.argmax(found["active"]))
    top = notebook.strongest(sae, planted, latent, 5)
    order = np.argsort(-dense[:, latent], kind="stable")[:5]
    assert top["id"].tolist() == [planted.ids[n] for n in order]
    assert top["text"].tolist() == [planted.texts[n] for n in order]
    assert np.allclose(top["code"], dense[order, latent], atol=1e-6)
    with pytest.raises(BadInput, match="latent is 48; it must be a whole number from 0 to 47"):
        notebook.strongest(sae, planted, 48)


def test_the_words_that_tell_where_a_latent_is_active() -> None:
    """By hand: a latent of the first number is active on texts 0 to 3, three of which say refund, one parcel."""
    texts = ["refund please", "a refund", "refund or parcel", "hello", "parcel lost", "my parcel", "good day", "bye"]
    x = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4, np.float32)
    sae = SAE(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), threshold=torch.zeros(2))
    ids = [str(number) for number in range(8)]
    found = notebook.features(sae, Vectors(x, ids, texts))
    assert found["words"].tolist() == ["refund · parcel", "parcel"]  # F1 6/7 and 2/7; 4/7
    assert notebook.features(sae, Vectors(x, ids, [""] * 8))["words"].tolist() == ["", ""]


def test_how_well_it_reconstructs_by_hand() -> None:
    """An SAE that keeps the first number alone: of [3, 0] all, of [0, 4] nothing."""
    sae = SAE(
        torch.tensor([[1.0, 0.0]]), torch.zeros(1), torch.tensor([[1.0, 0.0]]), torch.zeros(2), threshold=torch.zeros(1)
    )
    found = notebook.reconstruction(sae, Vectors(np.array([[3, 0], [0, 4]], np.float32), ["a", "b"], ["", ""]))
    assert found["fvu"] == pytest.approx(16 / 12.5) and found["l0"] == 0.5 and found["cosine"] == pytest.approx(0.5)
    assert found["mse"] == pytest.approx(16 / 4 * 2 / 12.5)


def test_figures(trained: notebook.Trained) -> None:
    curves, densities, compared = (
        notebook.curves(trained), notebook.densities(trained.features), notebook.compared(trained),
    )  # fmt: skip
    assert all(isinstance(figure, Figure) for figure in (curves, densities, compared))
    assert [len(axes.lines) for axes in curves.axes] == [2, 1]
    alive = int((trained.features["density"] > 0).sum())
    assert sum(patch.get_height() for patch in densities.axes[0].patches) == alive  # pyright: ignore[reportAttributeAccessIssue]
    lengths = [patch.get_width() for patch in compared.axes[0].patches]  # pyright: ignore[reportAttributeAccessIssue]
    assert lengths == pytest.approx(trained.quality["fvu"].tolist()[::-1])


@pytest.mark.parametrize(
    ("x", "ids", "why"),
    [
        (np.zeros((2, 3)), ["a"], "1 ids are given for 2 vectors"),
        (np.zeros((2, 3)), "ab", "ids is the text 'ab'"),
        (np.zeros(3), ["a"] * 3, r"an array of \(3,\)"),
        (np.zeros((2, 3, 1)), ["a"] * 2, r"an array of \(2, 3, 1\)"),
        (np.zeros((0, 3)), [], r"an array of \(0, 3\)"),
        (np.array([[1.0], [np.nan]]), ["a", "b"], r"NaN or infinity, the first is x\[1\]"),
        (np.array([[1e300]]), ["a"], "NaN or infinity"),
        ([[1.0, 2.0], [3.0]], ["a", "b"], "not equally long"),
        ([["1", "2"]], ["a"], "x holds <U1, not numbers"),
        (np.array([[1j]]), ["a"], "x holds complex128"),
        (pd.Series([[1.0], [2.0]]), ["a", "b"], r"np\.stack"),
        (None, ["a"], "x holds object"),
    ],
)
def test_vectors_that_are_none(x: Any, ids: Any, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        Vectors(x, ids, [""] * len(ids))


def test_vectors_of_what_holds_as_much() -> None:
    table = pd.DataFrame({"a": [1, 2], "b": [3.0, 4.0]})
    ids, texts = pd.Series([7, 8]), pd.Series(["x", np.nan])
    for x in (table, table.to_numpy(), torch.tensor(table.to_numpy(), dtype=torch.bfloat16, requires_grad=True)):
        found = Vectors(x, ids, texts)  # pyright: ignore[reportArgumentType]
        assert np.asarray(found).tolist() == found.x.tolist() == [[1, 3], [2, 4]]
        assert found.x.dtype == np.float32 and found.ids == ["7", "8"] and found.texts == ["x", ""]
        assert np.asarray(found, np.float64).dtype == np.float64 and np.linalg.norm(found, axis=1).shape == (2,)  # pyright: ignore[reportCallIssue, reportArgumentType]


untyped: Any = notebook  # for calls that its types forbid


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda v, t: untyped.train(v.x), "vectors is of type ndarray; it must be Vectors"),
        (lambda v, t: untyped.train(v, seed=-1), "seed is -1"),
        (lambda v, t: untyped.train(v, seed=2**70), "seed is 1180591620717411303424"),
        (lambda v, t: untyped.train(v, watch="yes"), "watch is the text 'yes'"),
        (lambda v, t: untyped.train(v, device="cuda:x"), "device is 'cuda:x'"),
        (lambda v, t: untyped.train(v, latent=64), r"train\.latent is not a known key"),
        (lambda v, t: untyped.train(v, rule="topkk"), r"train\.rule is 'topkk'"),
        (lambda v, t: untyped.train(v, latents=64.0), r"train\.latents"),
        (lambda v, t: untyped.train(v, **{"from": {"folder": "a", "sha256": "b"}}), r"train\.from takes an SAE"),
        (lambda v, t: untyped.features(t, v), "sae is of type Trained; it must be an SAE"),
        (lambda v, t: untyped.features(t.sae, v.x), "vectors is of type ndarray"),
        (lambda v, t: untyped.features(t.sae, narrow(v)), "the SAE reads vectors of 16 numbers; these have 1"),
        (lambda v, t: untyped.reconstruction(t.sae, narrow(v)), "the SAE reads vectors of 16 numbers"),
        (lambda v, t: untyped.strongest(t.sae, narrow(v), 0), "the SAE reads vectors of 16 numbers"),
        (lambda v, t: untyped.strongest(t.sae, v, -1), "latent is -1; it must be a whole number from 0 to 47"),
        (lambda v, t: untyped.strongest(t.sae, v, 1.0), r"latent is 1\.0"),
        (lambda v, t: untyped.strongest(t.sae, v, True), "latent is True"),
        (lambda v, t: untyped.strongest(t.sae, v, 0, most=-1), "most is -1; it must be a whole number of at least 1"),
        (lambda v, t: untyped.curves(t.history), "trained is of type DataFrame; it must be what train gives"),
        (lambda v, t: untyped.compared(t.sae), "trained is of type SAE"),
        (lambda v, t: untyped.densities(t), "features is of type Trained"),
        (lambda v, t: untyped.densities(t.history), "features is of type DataFrame"),
        (lambda v, t: untyped.save(v.x, "v.parquet"), "vectors is of type ndarray"),
        (lambda v, t: untyped.save(v, None), "path is None"),
        (lambda v, t: untyped.save(v, Path(__file__).parent), "is a folder; name a file in it"),
        (lambda v, t: untyped.save(v, f"{__file__}/v.parquet"), "cannot be written"),
        (lambda v, t: untyped.from_database(None, "SELECT 1"), "url is None"),
        (lambda v, t: untyped.from_database("a.db", None), "query is None"),
        (lambda v, t: untyped.from_database("a.db", "SELECT 1", id=3), "id is 3; it must be a text"),
        (lambda v, t: untyped.from_database("a.db", "SELECT 1", blob="float46"), "did you mean float"),
        (lambda v, t: untyped.from_database("a.db", "SELECT 1", most_bad=-1), "most_bad is -1"),
    ],
)
def test_calls_that_mean_nothing(planted: Vectors, trained: notebook.Trained, call: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        call(planted, trained)


def narrow(vectors: Vectors) -> Vectors:
    """With their first number alone, which would be spread over the SAE's width."""
    return Vectors(vectors.x[:, :1], vectors.ids, vectors.texts)


@pytest.mark.parametrize(
    ("knobs", "misjudged"),
    [
        ({"rule": "relu", "l1_coefficient": 1.0}, True),
        ({"rule": "relu", "penalty": "kl", "l1_coefficient": 1.0}, True),
        ({"rule": "gated", "l1_coefficient": 1.0}, False),
        ({"rule": "reward", "activity_cost": 0.03}, True),
    ],
)
def test_a_rule_that_finds_its_own_l0_is_judged_by_its_own_price(
    planted: Vectors, knobs: dict[str, Any], misjudged: bool
) -> None:
    """k is no more than where it starts: nearness to it would choose the checkpoint that has learnt least."""
    few = Vectors(planted.x[:1000], planted.ids[:1000], planted.texts[:1000])
    schedule = {"epochs": 6, "batch_size": 50, "lr": 1e-2, "auxk": 0.0, "wake": 0.0}
    found = notebook.train(few, latents=32, k=16, **schedule, **knobs)
    ends = found.history.dropna(subset=["score"]).reset_index(drop=True)
    fvu, l0 = ends["validation_fvu"], ends["validation_l0"]
    assert ends["score"].idxmin() == len(ends) - 1 and (ends["score"] > fvu).all()
    by_k = fvu + ((8 - l0) / 8).clip(lower=0) + ((l0 - 20) / 20).clip(lower=0)  # as of rules whose k sets l0
    assert (by_k.idxmin() < len(ends) - 1) == misjudged
    if knobs["rule"] == "reward":
        assert np.allclose(ends["score"], fvu + knobs["activity_cost"] * l0)
    assert found.best is found.sae and torch.equal(found.final.encoder, found.best.encoder)  # the last was the best


def test_too_few(planted: Vectors) -> None:
    with pytest.raises(BadInput, match="2 vectors are too few"):
        notebook.train(Vectors(planted.x[:2], ["a", "b"], ["", ""]))
    with pytest.raises(BadInput, match=r"train\.lr is the text '1e-3'"):
        notebook.train(planted, lr="1e-3")
