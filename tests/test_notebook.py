"""The functions for a notebook: what goes in comes out, numbers by brute force, and nothing else is disturbed."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from test_vectors import build, stored

from stages import notebook
from stages.door import BadInput
from stages.notebook import Vectors
from stages.sae.sae import SAE

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


def test_texts_are_embedded_as_the_model_does_bare() -> None:
    from sentence_transformers import SentenceTransformer

    from stages import sentences

    texts = ["The treaty was signed in Paris.", "Bread rises in a hot oven."]
    found = notebook.encode(texts, ids=["a", "b"])
    bare = SentenceTransformer(str(sentences.find(notebook.MINILM)), device="cpu").encode(texts)
    assert found.ids == ["a", "b"] and found.texts == texts
    assert np.allclose(found.x, bare, atol=1e-6) and np.allclose(np.linalg.norm(found.x, axis=1), 1, atol=1e-5)
    with pytest.raises(BadInput, match="no text"):
        notebook.encode([])


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
    with pytest.raises(BadInput, match="no latent 48"):
        notebook.strongest(sae, planted, 48)


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
        (np.zeros((2, 3)), ["a"], "not one each"),
        (np.zeros(3), ["a"] * 3, "not one each"),
        (np.array([[np.nan]]), ["a"], "NaN or infinity"),
    ],
)
def test_vectors_that_are_none(x: Any, ids: list[str], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        Vectors(x.astype(np.float32), ids, [""] * len(ids))


def test_too_few(planted: Vectors) -> None:
    with pytest.raises(BadInput, match="2 vectors are too few"):
        notebook.train(Vectors(planted.x[:2], ["a", "b"], ["", ""]))
    with pytest.raises(BadInput, match=r"train\.lr is the text '1e-3'"):
        notebook.train(planted, lr="1e-3")
