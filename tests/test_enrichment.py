"""Labels of a latent's strongest tokens and documents: every number is scipy's, and chance is measured."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control, fisher_exact, kurtosis, skew

from strata.interpretation.enrichment import Sets, cells, enrich
from strata.interpretation.logit_lens import final_norm, lens, through
from strata.lm.model import load

CPU = torch.device("cpu")
LATENTS, LABELS, DOCUMENTS = 20, 5, 60


def sets(lists) -> Sets:
    starts = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
    return Sets(starts, np.concatenate([np.asarray(one, np.int32) for one in lists]))


@pytest.fixture
def corpus():
    """Rows of documents of unequal length, labelled but for a few; sets of random rows and documents."""
    random = np.random.default_rng(0)
    row_document = np.repeat(np.arange(DOCUMENTS), random.integers(5, 40, DOCUMENTS))
    label = random.integers(-1, LABELS, DOCUMENTS)
    label[:3] = -1
    rows: list[Any] = [random.choice(len(row_document), random.integers(0, 30), replace=False) for _ in range(LATENTS)]
    documents = [random.choice(DOCUMENTS, 8, replace=False) for _ in range(LATENTS)]
    rows[3], rows[7] = [], np.flatnonzero(label[row_document] == 2)[:25]
    return sets(rows), sets(documents), row_document, label


def by_hand(top: Sets, unit_label) -> dict[tuple[int, int], tuple]:
    """Every cell of every latent and label as scipy sees it: table, odds ratio, p, and q over all of them."""
    known = unit_label >= 0
    found = {}
    for j in range(len(top.starts) - 1):
        mine = np.zeros(len(unit_label), bool)
        mine[top.items[top.starts[j] : top.starts[j + 1]]] = True
        if not (mine & known).any():
            continue
        for label in range(LABELS):
            has = unit_label == label
            table = [
                [(mine & has).sum(), (mine & known & ~has).sum()],
                [(~mine & has).sum(), (~mine & known & ~has).sum()],
            ]
            result: Any = fisher_exact(table, alternative="greater")
            found[j, label] = (table, result.statistic, result.pvalue)
    q = false_discovery_control([p for _, _, p in found.values()])
    return {key: (*value, q[i]) for i, (key, value) in enumerate(found.items())}


@pytest.mark.parametrize("level", ["token", "document"])
def test_every_cell_is_what_scipy_says(corpus, level):
    top_rows, top_documents, row_document, label = corpus
    top, units = (top_rows, label[row_document]) if level == "token" else (top_documents, label)
    expected = by_hand(top, units)
    table, report = enrich(top_rows, top_documents, row_document, label, LABELS, seed=0)
    assert report[level]["cells"] == len(expected)
    mine = np.flatnonzero(table["level"] == level)
    seen = set()
    for i in mine:
        key = (int(table["latent"][i]), int(table["label"][i]))
        (inside, outside), (labelled, others) = expected[key][0]
        _, odds, p, q = expected[key]
        assert (table["inside"][i], table["size"][i]) == (inside, inside + outside)
        assert (table["labelled"][i], table["total"][i]) == (inside + labelled, inside + outside + labelled + others)
        assert table["p"][i] == p
        np.testing.assert_allclose(table["q"][i], q, rtol=1e-14)
        np.testing.assert_allclose(table["odds_ratio"][i], odds if np.isfinite(odds) else np.nan, rtol=1e-14)
        seen.add(key)
    assert all(value[0][0][0] == 0 for key, value in expected.items() if key not in seen)  # only the empty are left out
    assert all(value[2] == 1 for key, value in expected.items() if key not in seen)
    assert (7, 2) in seen


def test_two_classes_and_one_class():
    row_document, top = np.repeat(np.arange(10), 10), sets([np.arange(20), [0, 50, 99]])
    halves = np.repeat([0, 1], 5)
    table, _ = enrich(top, sets([[0, 1], [0, 5, 9]]), row_document, halves, 2, seed=0)
    strongest = (table["level"] == "token") & (table["latent"] == 0)
    assert table["label"][strongest].tolist() == [0]  # all inside: a zero in the table
    assert np.isnan(table["odds_ratio"][strongest]).all()
    assert table["p"][strongest][0] == fisher_exact([[20, 0], [30, 50]], alternative="greater")[1]
    table, report = enrich(top, sets([[0, 1], [0, 5, 9]]), row_document, np.zeros(10, int), 1, seed=0)
    assert set(table["p"]) == {1.0} and report["document"]["significant"] == 0


def test_without_labels_nothing_is_tested():
    top = sets([[0, 1], []])
    table, report = enrich(top, top, np.arange(4), np.full(4, -1), 3, seed=0)
    assert len(table["p"]) == 0
    assert report["token"] == {"cells": 0, "latents": 0, "significant": None, "significant_chance": None}


def test_documents_without_a_row_do_not_count():
    top = sets([[0, 1]])
    table, _ = enrich(top, top, np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0]), 2, seed=0)
    at_documents = table["level"] == "document"
    assert set(table["total"][at_documents]) == {3} and set(table["total"][~at_documents]) == {5}


@pytest.fixture(scope="module")
def topics():
    """40 labels of 10 documents of 50 words. Half of the latents fire on documents of one label, half on any."""
    random = np.random.default_rng(1)
    documents, latents, length = 400, 600, 50
    row_document, label = np.repeat(np.arange(documents), length), np.repeat(np.arange(40), 10)
    rows, tops = [], []
    for j in range(latents):
        if j < latents // 2:
            mine = random.choice(np.flatnonzero(label == j % 40), 6, replace=False)
        else:
            mine = random.choice(documents, 20, replace=False)
        rows.append(np.unique(random.choice(mine, 30) * length + random.integers(0, length, 30)))
        tops.append(mine)
    return sets(rows), sets(tops), row_document, label


def test_real_labels_are_found_and_shuffled_ones_are_not(topics):
    rows, tops, row_document, label = topics
    _, report = enrich(rows, tops, row_document, label, 40, seed=0)
    assert 0.5 <= report["document"]["significant"] <= 0.53
    for seed in range(5):
        _, report = enrich(rows, tops, row_document, label, 40, seed)
        assert report["document"]["significant_chance"] <= 0.05


def test_a_document_that_repeats_fools_tokens_and_not_documents():
    """200 documents of 20 labels; each latent fires on a word that one long document repeats, and five others hold."""
    random = np.random.default_rng(2)
    documents, long = 200, 300
    row_document = np.repeat(np.arange(documents), long)
    label = random.permutation(np.repeat(np.arange(20), 10))
    rows, tops = [], []
    for _ in range(100):
        repeats, *others = random.choice(documents, 6, replace=False)
        rows.append(np.concatenate([repeats * long + np.arange(60), np.array(others) * long]))
        tops.append([repeats, *others])
    _, report = enrich(sets(rows), sets(tops), row_document, label, 20, seed=0)
    assert report["token"]["significant"] == 1 and report["token"]["significant_chance"] == 1
    assert report["document"]["significant"] <= 0.05 and report["document"]["significant_chance"] <= 0.05


def test_more_cells_than_shown_count_in_q():
    """A label that no set holds is tested too: it has p = 1, and makes the others' q larger."""
    top, units = sets([[0, 1, 2]]), np.array([0, 0, 0, 1, 1, 1, 2, 2])
    table, tested, living = cells(top, units, 3)
    assert (tested, living, len(table["q"])) == (3, 1, 1)
    np.testing.assert_allclose(table["q"], 3 * table["p"])


# --- the logit lens -------------------------------------------------------------------------------------------------


def test_the_lens_is_how_logits_move(tiny_lm):
    """For every family: a small step along a direction moves the logits as the lens says, up to one factor a token."""
    lm = load(tiny_lm, torch.float32, CPU)
    norm = final_norm(lm)
    assert norm is not None
    random = torch.Generator().manual_seed(0)
    x, d = (torch.randn(1, lm.width, generator=random, dtype=torch.float64) for _ in range(2))
    if getattr(norm, "bias", None) is not None:
        x = x - x.mean()
    d = d - (d * x).sum() / (x * x).sum() * x  # else the norm's division shrinks it
    head: Any = lm.model.get_output_embeddings()
    head.double()
    norm.double()
    moved = head(norm(x + 1e-4 * d)) - head(norm(x - 1e-4 * d))
    said = through(norm, d.float()).double() @ head.weight.T
    assert torch.cosine_similarity(moved, said).item() > 0.9999


def test_tokens_and_moments_equal_brute_force(gpt2, monkeypatch):
    monkeypatch.setattr("strata.interpretation.logit_lens.TOKENS", 8)  # blocks that do not divide the vocabulary
    monkeypatch.setattr("strata.interpretation.logit_lens.LATENTS", 3)
    monkeypatch.setattr("strata.interpretation.logit_lens.GROUP", 2)
    lm = load(gpt2, torch.float32, CPU)
    decoder = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    decoder[4] = 0
    found = lens(decoder, lm, 4)
    norm = final_norm(lm)
    assert found is not None and norm is not None
    head: Any = lm.model.get_output_embeddings()
    whole = (through(norm, decoder) @ head.weight.T).numpy()
    for j in set(range(7)) - {4}:
        order = np.argsort(-whole[j])
        assert found.promoted[j].tolist() == order[:4].tolist()
        assert found.suppressed[j].tolist() == order[::-1][:4].tolist()
        np.testing.assert_allclose(found.promoted_values[j], whole[j][order[:4]], rtol=1e-5)
        np.testing.assert_allclose(found.suppressed_values[j], whole[j][order[::-1][:4]], rtol=1e-5)
    living = [0, 1, 2, 3, 5, 6]
    np.testing.assert_allclose(found.skew[living], skew(whole[living], axis=1), atol=1e-4)
    np.testing.assert_allclose(found.kurtosis[living], kurtosis(whole[living], axis=1), atol=1e-4)
    assert np.isnan(found.skew[4]) and np.isnan(found.kurtosis[4])
    columns = found.columns()
    assert [len(column) for column in columns.values()] == [7 * 2 * 4] * 5
    assert columns["side"][:5].tolist() == ["promoted"] * 4 + ["suppressed"]
    assert columns["token"][8:12].tolist() == found.promoted[1].tolist()


def test_a_model_that_is_not_understood_has_no_lens(gpt2):
    lm = load(gpt2, torch.float32, CPU)
    lm.model.base_model.ln_f = torch.nn.Identity()
    assert final_norm(lm) is None
    assert lens(torch.ones(2, 32), lm, 3) is None
