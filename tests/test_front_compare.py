"""`strata.compare`: two groups of SAEs on rows of a language model, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_tiny_lm

import strata
from strata.comparison.predictions import delta_ce
from strata.front.activations import LayerActivations
from strata.sae.sae import SAE
from strata.splicing import splice

WORDS = ["the", "a", "cat", "dog", "sits", "runs", "on", "mat", "red", "blue", "of", "and", "man", "house", "tree"]
LAYER = 1


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> LayerActivations:
    folder: Path = save_tiny_lm(tmp_path_factory.mktemp("compare") / "lm", "gpt2")
    lm = strata.load_lm(folder, dtype=torch.float32)
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 30)) for _ in range(60)]
    return strata.activations(lm, texts, layers=[LAYER], context=32, test=0.3)[LAYER]


def near(acts: LayerActivations, k: int, seed: int) -> SAE:
    """An SAE of random directions that always leaves a part of a row out."""
    random = torch.Generator().manual_seed(seed)
    decoder = torch.linalg.qr(torch.randn(acts.width, acts.width, generator=random)).Q
    return SAE(decoder, torch.zeros(acts.width), decoder, acts.mean, k=k)


def test_predictions_are_those_of_splice(acts: LayerActivations):
    """With enough tokens for all: the same delta_ce as train measures on the same contexts."""
    assert acts.lm is not None
    saes = [near(acts, 4, 0), near(acts, 8, 1)]
    (first, second), weights = delta_ce([saes[:1], saes[1:]], acts.contexts, "resid_post", LAYER, acts.lm, 10**6)
    tokens, documents = acts.contexts.read(*acts.contexts.split("test"))
    # One context a document is predicted, the first: the texts are shorter than a context.
    assert weights.sum() == (documents[:, 1:] >= 0).sum() and len(weights) == len(np.unique(documents[documents >= 0]))
    variants: dict[str, splice.Replace] = {
        str(place): lambda x, sae=sae: sae.reconstruct(x.float())[0] for place, sae in enumerate(saes)
    }
    ids, rows = torch.from_numpy(tokens), torch.from_numpy(documents >= 0)
    expected = splice.means(splice.by_prediction(acts.lm, ids, rows, "resid_post", LAYER, variants))
    for place, sums in enumerate((first, second)):
        found = float(sums.sum() / weights.sum())
        assert found == pytest.approx(expected[str(place)]["ce"] - expected["clean"]["ce"], abs=1e-5)


def test_fewer_tokens_are_shared_among_the_documents(acts: LayerActivations):
    assert acts.lm is not None
    _, weights = delta_ce([[near(acts, 4, 0)]], acts.contexts, "resid_post", LAYER, acts.lm, 40)
    assert len(weights) == 18 and set(weights) == {40 // 18}


def test_more_active_latents_are_found_better_and_less_sparse(acts: LayerActivations):
    few, many = [near(acts, 4, seed) for seed in range(3)], [near(acts, 12, seed) for seed in range(3)]
    found = strata.compare(few, many, acts, ce_tokens=256)
    table = found.table.set_index("metric")
    assert list(table.index) == ["fvu_inlier", "l0", "delta_ce", "dead"]
    assert table["verdict"]["fvu_inlier"] == "worse" and table["verdict"]["l0"] == "better"
    assert found.verdict.startswith("A trade: A is better in l0, B in fvu_inlier")
    assert not table["paired"].any()  # nobody says with which seeds they were trained
    assert list(strata.compare(few, many, acts, ce_tokens=0).table["metric"]) == ["fvu_inlier", "l0", "dead"]


def test_trainings_of_one_seed_are_pairs(acts: LayerActivations):
    def trained(k: int, seed: int):
        return strata.train(acts, rule="topk", latents=32, k=k, epochs=1, batch_size=64, seed=seed, ce_tokens=0)

    a, b = [trained(2, seed) for seed in (0, 1)], [trained(4, seed) for seed in (1, 0)]
    assert strata.compare(a, b, acts, ce_tokens=0).table["paired"].all()
    alone = strata.compare(a, b[0], acts, ce_tokens=0)
    assert alone.verdict == "Undecided: one seed decides nothing. Train B again with another seed."


def test_what_is_refused(acts: LayerActivations):
    sae = near(acts, 4, 0)
    with pytest.raises(strata.BadInput, match="an SAE in common"):
        strata.compare([sae], [sae], acts)
    with pytest.raises(strata.BadInput, match="a is empty"):
        strata.compare([], [sae], acts)
    with pytest.raises(strata.BadInput, match="rows is of type Tensor"):
        strata.compare([sae], [near(acts, 4, 1)], torch.zeros(3, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(strata.BadInput, match="sae is of type Tensor"):
        strata.compare([torch.zeros(3)], [sae], acts)
