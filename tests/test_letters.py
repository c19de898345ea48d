"""Absorption on first letters: planted words whose letter is apart, absorbed or lost; a text in which no letter can be
read."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_train import stored

from strata.evaluation import letters
from strata.rows.shards import Activations, Contexts
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.sae.sae import SAE

KINDS, WORDS, TIMES = "abcdef", 60, 5
COUNT = len(KINDS) * WORDS
PIECES = [f" {letter}x{'yz'[n % 2] * (n + 1)}" for letter in KINDS for n in range(WORDS)]
TAKEN = np.arange(COUNT) % 3 == 0  # words whose latent writes the letter too, where it is absorbed


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    """Each word TIMES times, in any order, behind a place that is no row."""
    folder = tmp_path_factory.mktemp("letters")
    token = np.random.default_rng(0).permutation(np.repeat(np.arange(COUNT), TIMES)).reshape(60, -1).astype(np.int32)
    token = np.pad(token, ((0, 0), (1, 0)))
    document = np.where(np.arange(token.shape[1]) > 0, 7, -1) * np.ones_like(token)
    save_file({"token": torch.from_numpy(token), "document": torch.from_numpy(document)}, folder / "0.safetensors")
    files = [{"file": "0.safetensors", "sha256": sha256(folder / "0.safetensors")}]
    splits = {"train": [0, 40], "validation": [40, 50], "test": [50, 60]}
    meta = {"context": token.shape[1], "file_contexts": 60, "contexts": splits, "rows": COUNT * TIMES, "files": files}
    return Contexts(folder, meta)


def rows(contexts: Contexts, with_letter: bool = True) -> Activations:
    """A row is the direction of its word, and that of the word's letter."""
    token = np.concatenate([contexts.rows(split)[0] for split in ("train", "validation", "test")])
    x = torch.zeros(len(token), len(KINDS) + COUNT)
    x[torch.arange(len(token)), len(KINDS) + torch.from_numpy(token).long()] = 1
    if with_letter:
        x[torch.arange(len(token)), torch.from_numpy(token // WORDS).long()] = 1
    a, b = (len(token) * part // 60 for part in (40, 50))
    return stored(x, {"train": [0, a], "validation": [a, b], "test": [b, len(token)]})


def dictionary(silent: bool, writes: bool) -> SAE:
    """A latent for each letter and each word. ``silent``: the letter's is, on TAKEN words; their latents write it."""
    size = len(KINDS) + COUNT
    reads, directions = torch.eye(size), torch.eye(size)
    for word in np.flatnonzero(TAKEN):
        letter, at = int(word) // WORDS, len(KINDS) + int(word)
        reads[letter, at] = -1.0 if silent else 0.0
        directions[at, letter] = 1.0 if writes else 0.0
    return SAE(reads, torch.zeros(size), directions, torch.zeros(size), threshold=torch.full((size,), 0.5))


def test_first_letters():
    pieces = [" Bee", "bee", " b", " bé", " b3", " zo", "", " ", "\n ab"]
    assert letters.first_letters(pieces).tolist() == [1, -1, -1, -1, -1, 25, -1, -1, -1]


def test_a_letter_is_apart_absorbed_or_lost(contexts: Contexts):
    activations = rows(contexts)
    controls = {"absorbed": dictionary(True, True), "lost": dictionary(True, False)}
    found = letters.absorption(dictionary(False, False), controls, activations, contexts, PIECES, 1000, 0)
    assert found["letters"] == KINDS and found["probe_f1"] > 0.99
    assert (found["words"], found["rows"]) == (COUNT, COUNT * letters.EACH)
    for name in ("absorbed", "lost"):
        assert found[name] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["f1"]["value"] == found["mains"]["value"] == 1.0

    absorbed, lost = found["controls"]["absorbed"], found["controls"]["lost"]
    assert absorbed["lost"]["value"] == lost["absorbed"]["value"] == 0.0
    assert absorbed["absorbed"] == lost["lost"], "the same latents are silent on the same words"
    assert absorbed["absorbed"]["value"] == pytest.approx(1 / 3, abs=0.1) and absorbed["mains"]["value"] == 1.0
    assert absorbed["f1"]["value"] == pytest.approx(0.8, abs=0.1)  # a third of the words is not found

    again = letters.absorption(dictionary(False, False), controls, activations, contexts, PIECES, 1000, 0)
    assert again == found


def test_where_no_letter_can_be_read_it_says_so(contexts: Contexts):
    none = letters.absorption(dictionary(False, False), {}, rows(contexts, False), contexts, PIECES, 1000, 0)
    assert none["why"].startswith("a linear probe reads 0 first letters")
    assert "reads 0" in letters.absorption(dictionary(False, False), {}, rows(contexts), contexts, PIECES, 20, 0)["why"]
    unspelled = ["1"] * COUNT
    assert (
        "reads 0" in letters.absorption(dictionary(False, False), {}, rows(contexts), contexts, unspelled, 9, 0)["why"]
    )
    with pytest.raises(BadInput, match="the text has token 359, and the tokenizer in data/lm knows 20"):
        letters.absorption(dictionary(False, False), {}, rows(contexts), contexts, PIECES[:20], 9, 0)
