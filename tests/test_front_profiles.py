"""From prompts to filtered codes in one call: the model's own states by hand, and what strata.latents says."""

from typing import Any

import numpy as np
import pytest
import torch
from test_front import acts, lm, sae, texts

import strata
from strata.front.activations import LayerActivations

__all__ = ["acts", "lm", "sae"]  # fixtures
ANY = {"min": None, "max": None}
OPEN = {"entropy": ANY, "firing": ANY, "importance": ANY}  # nothing but dead latents is dropped


def test_codes_are_means_over_the_tokens_of_each_prompt(lm, sae):
    """hidden_states[3] of transformers, encoded one prompt at a time; special tokens count for nothing."""
    prompts = ["the cat sits on the mat", "red dog", " ", "a blue house of the man and the sea"]
    found = strata.profiles(lm, sae, prompts, layer=2, context=32, filters=OPEN)
    assert found.prompts == [prompts[0], prompts[1], prompts[3]]
    expected = []
    for prompt in found.prompts:
        tokens = torch.tensor([[lm.bos, *lm.read([prompt])[0]]])
        with torch.inference_mode():
            x = lm.model(tokens, output_hidden_states=True).hidden_states[3]
        x = x[~torch.isin(tokens, lm.special_ids())]
        expected.append(sae.sae.encode(x.bfloat16().float()).dense().mean(0).numpy())
    alive = np.flatnonzero(np.stack(expected).any(0))
    assert found.latents.tolist() == alive.tolist()
    assert found.codes.toarray() == pytest.approx(np.stack(expected)[:, alive], rel=0.02, abs=1e-3)


def test_filters_drop_what_latents_drops(lm, sae, acts: dict[int, LayerActivations]):
    """The same texts, model and SAE: every column that both have is equal, and so are the reasons."""
    filters = {"firing": {"min": 0.1, "max": 0.9}, "entropy": {"min": 0.5}}
    found = strata.profiles(lm, sae, texts(), layer=2, context=32, filters=filters)
    table = strata.latents(sae, acts[2], filters=filters).table
    for name in ("density", "entropy", "varentropy", "importance", "mean"):
        assert found.table[name].to_numpy() == pytest.approx(table[name].to_numpy(), rel=1e-4, abs=1e-6), name
    assert found.table["documents"].tolist() == table["documents"].tolist()
    assert found.table["dropped"].fillna("").tolist() == table["dropped"].fillna("").tolist()
    assert found.latents.tolist() == table.index[table["kept"]].tolist() and 0 < len(found.latents) < 64
    assert found.codes.shape == (60, len(found.latents)) and found.prompts == texts()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompts": "one"}, "texts is the text 'one'"),
        ({"layer": 99}, "layers names layer 99"),
        ({"filters": {"fring": {}}}, "interpret.filters.fring is not a known key"),
        ({"filters": {"firing": {"min": 0.9, "max": 0.1}}}, "min 0.9 is above max 0.1"),
        ({"sae": 3}, "sae is 3; it must be an SAE"),
    ],
)
def test_prompts_and_filters_that_are_none(lm, sae, given: dict[str, Any], said: str):
    with pytest.raises(strata.BadInput, match=said):
        strata.profiles(**{"lm": lm, "sae": sae, "prompts": texts(5), "layer": 2, "context": 32, **given})
