"""Families of latents: scores worked by hand, maps, and the stage on a layer made by hand."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import EVIL
from safetensors.numpy import save_file
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score
from test_grouping import DEFAULTS, ROOT, SETTINGS, columns, knobs, of_groups

from strata.families import cluster as room
from strata.families import maps, naming, profiles, selection
from strata.families.knobs import Selection
from strata.families.read import DEAD, NOISE, clustered, cut, open_clusters, selected
from strata.families.similarity import unit
from strata.families.stability import agreement
from strata.interpretation.neighbours import nearest
from strata.interpretation.read import open_latents
from strata.run.door import BadInput
from strata.run.files import write_json
from strata.run.params import check

# --- profiles, names, selection -----------------------------------------------------------------------------------

# Five latents over four documents; clusters {0, 1}, {2}, {3}, and latent 4 is noise. Threshold 0.1.
#   cluster 0: 8 values, sum 4, largest 2, 4 of 8 above 0.1:
#              (0.4 · 0.5 + 0.3 · 2 + 0.3 · 0.25) ln 3 = 0.875 · 1.0986123 = 0.9612858
#   cluster 1: (0.4 · 1 + 0.3 · 1 + 0) ln 2 = 0.7 · 0.6931472 = 0.4852030: it is lit in every document
#   cluster 2: (0.4 · 0.75 + 0.3 · 3 + 0.3 · 0.1875) ln 2 = 1.25625 · 0.6931472 = 0.8707661
TOY = np.array([[2, 0, 0, 0.5], [0, 1, 0, 0.5], [1, 1, 1, 1], [0, 0, 3, 0], [9, 9, 9, 9]], float)
TOY_LABELS = np.array([0, 0, 1, 2, NOISE])
TOY_SCORES = [0.875 * np.log(3), 0.7 * np.log(2), 1.25625 * np.log(2)]
IDS = np.array([10, 20, 30, 40, 50])


def picked(**changes: Any) -> list[tuple[int, int]]:
    given = check({**DEFAULTS["selection"], **changes}, Selection, "cluster.selection")
    rows = selection.select(csr_array(TOY), TOY_LABELS, IDS, 3, given)
    return [(row["latent"], row["cluster"]) for row in rows]


def test_scores_are_as_worked_by_hand():
    scores = selection.cluster_scores(csr_array(TOY), TOY_LABELS, 3, 0.1)
    np.testing.assert_allclose(scores["composite"], TOY_SCORES)
    assert scores["size"].tolist() == [2, 1, 1] and scores["mean"].tolist() == [0.5, 1, 0.75]
    assert scores["max"].tolist() == [2, 1, 3] and scores["sparsity"].tolist() == [0.25, 0, 0.1875]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"clusters": "top_n", "top_n": 2}, [(10, 0), (40, 2)]),
        ({"clusters": "top_n", "top_n": 2, "score": "mean"}, [(30, 1), (40, 2)]),
        ({"clusters": "top_n", "top_n": 1, "score": "max"}, [(40, 2)]),
        ({"clusters": "top_n", "top_n": 1, "score": "size"}, [(10, 0)]),
        ({"clusters": "top_n", "top_n": 2, "score": "sparsity"}, [(10, 0), (40, 2)]),
        ({"clusters": "all"}, [(10, 0), (40, 2), (30, 1)]),
        ({"clusters": "all", "per_cluster": 2}, [(10, 0), (20, 0), (40, 2), (30, 1)]),
        ({"clusters": "single", "single": 1}, [(30, 1)]),
        ({"clusters": "single", "single": 0, "latents": "mean"}, [(10, 0)]),
        # 0, 0, 0.5, 2 and 0, 0, 0.5, 1 have the same median, 0.25: the lower latent goes first
        ({"clusters": "single", "single": 0, "latents": "percentile", "percentile": 50.0}, [(10, 0)]),
    ],
)
def test_the_right_clusters_and_their_latents_are_selected(changes: dict[str, Any], expected: list[tuple[int, int]]):
    assert picked(**changes) == expected


def test_a_selected_cluster_that_is_not_there_is_one_sentence():
    with pytest.raises(BadInput, match=r"cluster\.selection\.single is 3, .*; choose one of 0 to 2"):
        picked(clusters="single", single=3)


def test_selection_does_not_depend_on_the_scale_of_the_activations():
    for scale in (1.0, 37.0):
        np.testing.assert_allclose(
            selection.in_units(csr_array(scale * TOY)).toarray(), TOY / TOY[TOY > 0].mean(), rtol=1e-12
        )


def test_profiles_are_as_worked_by_hand():
    profile = profiles.cluster_profiles(csr_array(TOY), TOY_LABELS, 3)
    np.testing.assert_allclose(profile.toarray(), [[1, 0.5, 0, 0.5], [1, 1, 1, 1], [0, 0, 3, 0]])
    top = profiles.top_documents(profile, 2)
    assert [top[name].tolist() for name in ("cluster", "rank", "column")] == [
        [0, 0, 1, 1, 2],
        [0, 1, 0, 1, 0],
        [0, 1, 0, 1, 2],
    ]
    pairs = profiles.correlated(profile, -1.0)
    expected = np.corrcoef(profile.toarray()[0], profile.toarray()[2])[0, 1]
    values = {(a, b): c for a, b, c in zip(*pairs.values(), strict=True)}
    assert values[0, 2] == pytest.approx(expected) and values[0, 1] == values[1, 2] == 0
    assert len(profiles.correlated(profile, 0.5)["cluster"]) == 0


def test_names_are_what_members_say_and_others_do_not():
    said = {1: ["the", "june"], 2: ["the", "may"], 3: ["may", "june"], 4: ["the", "cat"], 5: ["the", "dog"], 6: []}
    found = naming.names([[1, 2, 3], [4, 5], [6]], [1, 4, 6], said, 2)
    assert found == ["june · may", "the", "like latent 6"]
    assert naming._named(r'" June" (80 %), "\"b" (3 %), "\n" (2 %); or the token before is " in" (5 %)', True) == [
        "june",
        '"b',
        "↵",
    ]
    assert naming._named('"\ufffd" (80 %), " June" (3 %)', True) == ["june"], "a broken letter says nothing"
    assert naming._named("Names of months", False) == ["names", "of", "months"]


def test_agreement_counts_noise_as_alone():
    a = np.array([0, 0, 1, 1, NOISE, NOISE])
    assert agreement(a, np.array([5, 5, 2, 2, 7, 9])) == 1
    assert agreement(a, np.array([0, 0, 1, 1, 2, 2])) < 1


# --- maps ---------------------------------------------------------------------------------------------------------


def test_principal_components_are_those_of_numpy():
    for shape in ((30, 6), (6, 30)):
        vectors = np.random.default_rng(9).normal(size=shape)
        left, values, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        np.testing.assert_allclose(
            np.abs(maps.principal(vectors)), np.abs(left[:, :2] * values[:2]), rtol=1e-4, atol=1e-5
        )
    assert maps.principal(np.ones((1, 4))).tolist() == [[0, 0]]
    near, far = maps.neighbours(unit(np.random.default_rng(10).normal(size=(20, 4))), 3)
    assert near[:, 0].tolist() == list(range(20)) and (np.diff(far, axis=1) >= 0).all()


# --- the stage ----------------------------------------------------------------------------------------------------

LATENTS, WIDTH, DOCUMENTS, PER, LOST = 76, 48, 12, 30, (5, 33, 71)  # LOST: dead


def layer(folder: Path, dead: tuple[int, ...] = LOST) -> room.Source:
    """A layer made by hand: the three groups of directions, whose members fire together, in two shards."""
    rng = np.random.default_rng(11)
    vectors, truth = of_groups()
    alive = [latent for latent in range(LATENTS) if latent not in dead]
    decoder = rng.normal(size=(LATENTS, WIDTH)).astype(np.float32)
    group = np.full(LATENTS, -1)
    for latent, vector, of in zip(alive, vectors, truth, strict=False):
        decoder[latent], group[latent] = vector, of
    rows = DOCUMENTS * PER
    fires = rng.random((rows, LATENTS)) < 0.1
    for of in range(3):
        fires[:, group == of] |= (rng.random(rows) < 0.15)[:, None]
    codes = np.where(fires, rng.gamma(2.0, 5.0, (rows, LATENTS)), 0).astype(np.float32)
    codes[:, list(dead)] = 0
    shards, half = [], rows // 2 + 7
    (folder / "codes").mkdir(parents=True)
    for number, (first, end) in enumerate(((0, half), (half, rows))):
        part, name = columns(codes[first:end]), f"codes/shard-{number:05d}.safetensors"
        save_file({"starts": part.starts, "rows": part.rows.astype(np.int32), "values": part.values}, folder / name)
        shards.append({"file": name, "first": first, "rows": end - first, "entries": int(part.starts[-1])})
    mean = codes.reshape(DOCUMENTS, PER, LATENTS).mean(1)
    document, latent = mean.nonzero()
    lists = [[10, 20, 30][of] if of >= 0 else 0 for of in group]
    notes = [
        {
            "latent": j, "source": "rule",
            "text": f'{json.dumps(EVIL[j % len(EVIL)])} (90 %), " word{lists[j]}" (50 %)',
            "balanced_accuracy": 0.9, "balanced_accuracy_chance": 0.5,
        }
        for j in alive
    ]  # fmt: skip
    is_dead = np.isin(np.arange(LATENTS), dead)
    tables = {
        "statistics": pa.table(
            {
                "latent": np.arange(LATENTS),
                "dead": is_dead,
                "kept": ~is_dead & (group != 1),
                "density": (codes > 0).mean(0),
                "interest": np.where(is_dead, 0.0, 0.5),
            }
        ),
        "neighbours": pa.table(nearest(decoder, ~is_dead, 10)),
        "documents": pa.table({"latent": latent, "document": document, "mean": mean[document, latent]}).sort_by(
            "latent"
        ),
        "names": pa.table(
            {
                "latent": [j for j, dead in enumerate(is_dead) if not dead],
                "name": [f"{EVIL[j % len(EVIL)]} {j}" for j, dead in enumerate(is_dead) if not dead],
            }
        ),
        "explanations": pa.Table.from_pylist(notes),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    meta = {"layer": 4, "latents": LATENTS, "rows": rows, "model": {"name": "<tiny>"}, "shards": shards}
    write_json(folder / "meta.json", meta)
    owner = np.repeat(np.arange(DOCUMENTS), PER).astype(np.int32)
    titles: list[str | None] = [f"{EVIL[d % len(EVIL)]} $x_{d}" for d in range(DOCUMENTS)]
    return room.Source(open_latents(folder), decoder, owner, titles, ["a", "b", None] * 4)


SMALL: dict[str, Any] = {"clusters": 16, "stability": {"bootstraps": 1, "reseeds": 1, "shuffles": 5}}
AT_ONCE: dict[str, Any] = {**SMALL, "map": {"method": "pca"}}


def test_the_stage_finds_what_was_planted_and_its_files_open(tmp_path: Path):
    source = layer(tmp_path / "latents")
    report = room.cluster(source, knobs(**AT_ONCE), 0, tmp_path / "out")
    found = open_clusters(tmp_path / "out")
    assert clustered(tmp_path / "out") and found.meta["layer"] == 4 and found.labels.shape == (LATENTS,)
    assert np.array_equal(np.flatnonzero(found.labels == DEAD), LOST) and np.array_equal(found.living, source.living)
    assert found.tree is not None and np.array_equal(cut(found.tree, 16), found.labels[found.living])
    truth = np.repeat(np.arange(3), 20)
    assert adjusted_rand_score(truth, found.labels[found.living][:60]) >= 0.9
    rows = found.table("clusters").to_pylist()
    assert [row["cluster"] for row in rows] == list(range(16)) and sum(row["size"] for row in rows) == LATENTS - len(
        LOST
    )
    assert all(found.labels[row["medoid"]] == row["cluster"] for row in rows)
    medoids = np.flatnonzero(found.table("latents")["medoid"].to_numpy())
    assert medoids.tolist() == sorted(row["medoid"] for row in rows)
    assert all("word" in row["name"] for row in rows[:3])
    kept, chosen = source.latents.table("statistics"), selected(tmp_path / "out")
    assert kept is not None and chosen and all(kept["kept"][latent].as_py() for latent in chosen)
    assert report["stability"]["bootstrap"]["ari"] > 0.8 > 0.2 > abs(report["stability"]["chance"]["ari"])
    assert report["stability"]["reseed"] is None and report["selected"] == len(chosen)
    assert set(found.meta["files"]) == {path.name for path in (tmp_path / "out").iterdir()} - {"meta.json"}
    for name in found.meta["files"]:
        if name.endswith(".png"):
            assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["dbscan", "hdbscan", "kmeans"])
def test_the_stage_runs_with_each_method(tmp_path: Path, method: str):
    how = {**AT_ONCE, **{key: value for key, value in SETTINGS[method].items() if key != "min_cluster_size"}}
    report = room.cluster(layer(tmp_path / "latents"), knobs(method=method, **how), 0, tmp_path / "out")
    found = open_clusters(tmp_path / "out")
    assert found.tree is None and report["parameters"]["method"] == found.meta["parameters"]["method"] == method
    assert report["noise"] == (found.labels == NOISE).sum() and (report["noise"] > 0) == (method != "kmeans")
    assert (report["stability"]["reseed"] is not None) == (method == "kmeans")
    assert bool(report["tried"]) == (method == "dbscan")


def test_one_living_latent_and_one_cluster_of_all(tmp_path: Path):
    whole = layer(tmp_path / "latents")
    report = room.cluster(whole, knobs(**{**AT_ONCE, "clusters": 1}), 0, tmp_path / "one")
    assert report["clusters"] == 1 and report["quality"]["silhouette"] is None
    alone = layer(tmp_path / "alone", tuple(range(1, LATENTS)))
    for method in ("agglomerative", "kmeans", "dbscan", "hdbscan"):
        folder = tmp_path / method
        report = room.cluster(alone, knobs(**{**SMALL, "clusters": 1, "method": method}), 0, folder)
        labels = open_clusters(folder).labels
        noisy = method in ("dbscan", "hdbscan")  # too few for a core
        assert labels[0] == (NOISE if noisy else 0) and (labels[1:] == DEAD).all() and report["clusters"] == 1 - noisy
    with pytest.raises(BadInput, match="only 1 latents are living"):
        room.cluster(alone, knobs(clusters=2), 0, tmp_path / "two")
    nothing = layer(tmp_path / "nothing", tuple(range(LATENTS)))
    with pytest.raises(BadInput, match="layer 4 has no living latent"):
        room.check(nothing)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path):
    source = layer(tmp_path / "latents")
    with pytest.raises(BadInput, match="is of 76 latents, but the SAE has 75; run interpret again"):
        room.check(replace(source, decoder=source.decoder[1:]))
    with pytest.raises(BadInput, match="is of 360 tokens, but 359 are stored; run interpret again"):
        room.check(replace(source, document=source.document[1:]))


def test_a_damaged_folder_is_one_sentence(tmp_path: Path):
    room.cluster(layer(tmp_path / "latents"), knobs(**AT_ONCE), 0, tmp_path / "out")
    (tmp_path / "out" / "tree.npy").write_bytes(b"")
    with pytest.raises(BadInput, match=r"tree\.npy does not have the hash that was noted .*; run cluster again"):
        open_clusters(tmp_path / "out")
    (tmp_path / "out" / "latents.parquet").write_bytes(b"")
    with pytest.raises(BadInput, match=r"latents\.parquet does not have the hash that was noted"):
        open_clusters(tmp_path / "out")
    (tmp_path / "out" / "latents.parquet").unlink()
    with pytest.raises(BadInput, match=r"latents\.parquet is missing; run cluster again"):
        open_clusters(tmp_path / "out")
    write_json(tmp_path / "out" / "meta.json", {"skipped": True})
    assert not clustered(tmp_path / "out")
    with pytest.raises(BadInput, match=r"cluster was skipped; set cluster\.run: true"):
        open_clusters(tmp_path / "out")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.links += [f"{name}={value}" for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_the_map_asks_for_nothing_and_runs_no_text(tmp_path: Path):
    room.cluster(layer(tmp_path / "latents"), knobs(**AT_ONCE), 0, tmp_path / "out")
    text = (tmp_path / "out" / "map.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert page.links == [] and page.found.count("script") == 3 and "b" not in page.found
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # pyright: ignore[reportOptionalSubscript]
    assert len(data["x"]) == len(data["text"]) == LATENTS - len(LOST)
    assert any(EVIL[0] in said for said in data["text"])
    source = open_latents(tmp_path / "latents").table(
        "neighbours", filters=[("latent", "=", data["id"][0]), ("rank", "<", 8)]
    )
    assert source is not None and data["near"][0] == source["neighbour"].to_pylist()
    assert data["score"][0] == 0.9 and 0 < min(data["density"]) <= max(data["density"]) < 1


AGAIN = """
import sys; sys.path[:0] = {paths!r}
from pathlib import Path
import test_cluster as t
t.room.cluster(t.layer(Path(sys.argv[1]) / "latents"), t.knobs(**t.SMALL), 0, Path(sys.argv[1]) / "out")
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path):
    script = AGAIN.format(paths=[str(ROOT), str(ROOT / "tests")])
    for name in ("a", "b"):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(ord(name))},
        )
    files = sorted(path.name for path in (tmp_path / "a" / "out").iterdir())
    assert "map.png" in files
    for name in files:
        assert (tmp_path / "a" / "out" / name).read_bytes() == (tmp_path / "b" / "out" / name).read_bytes(), name
