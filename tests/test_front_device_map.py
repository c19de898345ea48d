"""A model whose blocks lie in memory and on the disk in turn gives the same numbers as the whole model, to the bit."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_tiny_lm
from test_front import texts

import strata
from strata.front.activations import LayerActivations
from strata.front.lm import identity
from strata.lm.model import LanguageModel, forward_until, shared_start

DISK = [1, 3]  # blocks
SMALL = {"greedy": {"steps": 2, "candidates": 4}, "soft": {"starts": 1, "steps": 3}, "templates": 0}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The same model whole, and spread."""
    root = tmp_path_factory.mktemp("spread")
    whole = strata.load_lm(save_tiny_lm(root / "lm", request.param), dtype=torch.float32)
    name = {id(module): name for name, module in whole.model.named_modules()}
    around = [child for child in whole.trunk.children() if child is not whole.blocks]
    others = "cpu" if request.param == "gpt2" else "disk"  # GPT-2's head and embeddings are one matrix, which stays
    places = {name[id(child)]: others for child in around} | {"lm_head": others}
    places |= {name[id(block)]: "disk" if n in DISK else "cpu" for n, block in enumerate(whole.blocks)}
    options = {"device_map": places, "offload_folder": str(root / "weights")}
    return whole, strata.load_lm(root / "lm", dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def both(models: tuple[LanguageModel, LanguageModel]) -> list[dict[int, LayerActivations]]:
    return [strata.activations(model, texts(), layers=[1, 2], context=32) for model in models]


def test_weights_really_wait_on_the_disk(models: tuple[LanguageModel, LanguageModel]):
    whole, spread = models
    for number, block in enumerate(spread.blocks):
        assert {weight.is_meta for weight in block.parameters()} == {number in DISK}
    assert spread.device == torch.device("cpu") and identity(spread) == identity(whole)


def test_activations_are_the_same_bits(both: list[dict[int, LayerActivations]]):
    for layer in (1, 2):
        assert np.array_equal(np.asarray(both[0][layer]), np.asarray(both[1][layer]))
        assert both[0][layer].activations.meta["model"] == both[1][layer].activations.meta["model"]


def test_what_follows_is_the_same(both: list[dict[int, LayerActivations]], models: tuple[LanguageModel, LanguageModel]):
    """Quality with the reconstruction spliced in, latents with the logit lens, steering, prompts by gradients."""
    saes = [strata.train(acts[1], rule="topk", latents=32, k=4, epochs=1) for acts in both]
    pd.testing.assert_frame_equal(saes[0].quality, saes[1].quality)
    found = [strata.latents(sae, acts[1]) for sae, acts in zip(saes, both, strict=True)]
    best = int(found[0].table["importance"].to_numpy().argmax())
    pd.testing.assert_frame_equal(found[0].logits(best), found[1].logits(best))
    assert len(found[0].logits(best))

    ids = models[0].tokenizer("the cat", return_tensors="pt")["input_ids"]
    steered = []
    for model, sae in zip(models, saes, strict=True):
        with strata.steer(model, sae, {best: strata.Set(50.0)}, layer=1):
            steered.append(model.model(ids).logits)
    assert torch.equal(steered[0], steered[1]) and not torch.equal(steered[0], models[0].model(ids).logits)

    prompts = [strata.invert(latents, [best], tokens=4, **SMALL).table for latents in found]
    pd.testing.assert_frame_equal(prompts[0], prompts[1])


def test_a_shared_start_leaves_the_weights_where_they_were(models: tuple[LanguageModel, LanguageModel]):
    spread = models[1]
    tokens = torch.tensor([[spread.bos, 4, 5]])
    with torch.inference_mode():
        before = spread.model(tokens).logits
        with shared_start(spread, 2):
            forward_until(spread, 2, tokens=tokens)
        assert torch.equal(spread.model(tokens).logits, before)


def test_maps_that_are_none(tmp_path: Path):
    folder = save_tiny_lm(tmp_path / "lm", "gpt2")
    with pytest.raises(strata.BadInput, match="device_map is 3; it must be 'auto'"):
        strata.load_lm(folder, device_map=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(strata.BadInput, match="device is cuda and device_map is given"):
        strata.load_lm(folder, device="cuda", device_map="auto")
    with pytest.raises(strata.BadInput, match="no language model could be loaded from"):
        strata.load_lm(folder, device_map="sideways")
