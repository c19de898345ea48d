"""Token rules of an SAE beside those of twins: planted tokens are named, chance is chance."""

from pathlib import Path

import numpy as np
import pytest
import test_interpret
import torch
from test_evaluate import reading
from test_train import stored

from strata.evaluation import pooled as documents
from strata.evaluation.knobs import TokenRules
from strata.evaluation.rules import _columns, token_rules
from strata.rows.shards import Activations, Contexts

FIRST = 4  # of the tokens that are no special ones
KNOBS = TokenRules(latents=16, rows=4000)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> tuple[torch.Tensor, Contexts]:
    """Rows that say which token they are of, with some noise, and their contexts."""
    source = test_interpret.make_source(tmp_path_factory.mktemp("rules"), gpt2, *test_interpret.texts())
    token = torch.from_numpy(source.contexts.rows("train")[0].astype(np.int64))
    x = torch.nn.functional.one_hot(token - FIRST, test_interpret.WIDTH).float()
    return x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), source.contexts


def activations(x: torch.Tensor) -> Activations:
    return stored(x, {"train": [0, len(x)], "validation": [0, 0], "test": [0, 0]})


def test_a_rule_names_the_planted_token_and_no_random_direction_does_as_well(written: tuple[torch.Tensor, Contexts]):
    x, contexts = written
    sae = reading(torch.eye(test_interpret.WIDTH))
    sae = type(sae)(sae.encoder, sae.b_enc, sae.decoder, sae.b_dec, threshold=torch.full((test_interpret.WIDTH,), 0.5))
    random = documents.untrained(sae, x, torch.Generator().manual_seed(1))
    found = token_rules(sae, {"untrained": random, "itself": sae}, activations(x), contexts, KNOBS, 0)
    assert found["latents"] == 16 and found["sae"]["value"] > 0.99
    assert 0.4 < found["chance"]["value"] < 0.6, "the rule of another token says nothing of this one"
    assert found["controls"]["untrained"]["value"] < 0.95 and found["above"]["untrained"]["low"] > 0.02
    assert found["above"]["itself"]["low"] <= 0 <= found["above"]["itself"]["high"]
    assert token_rules(sae, {"untrained": random, "itself": sae}, activations(x), contexts, KNOBS, 0) == found

    # The same rows in another order: no rule says where latents fire.
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    shuffled = token_rules(sae, {}, activations(x[order]), contexts, KNOBS, 0)
    assert 0.4 < shuffled["sae"]["value"] < 0.6 and shuffled["controls"] == {}


def test_columns_are_the_codes_of_the_latents_in_their_order(written: tuple[torch.Tensor, Contexts]):
    x, _ = written
    sae, chosen = test_interpret.make_sae(), [30, 3, test_interpret.DEAD]
    columns = _columns(sae, chosen, iter(x[:500].split(200)))
    dense = sae.encode(x[:500]).dense().numpy()
    assert len(columns) == 3
    for place, latent in enumerate(chosen):
        rows = columns.rows[columns.of(place)]
        assert rows.tolist() == np.flatnonzero(dense[:, latent]).tolist()
        assert columns.values[columns.of(place)].tolist() == pytest.approx(dense[rows, latent].tolist())


def test_an_sae_that_is_silent_has_nothing_to_name(written: tuple[torch.Tensor, Contexts]):
    x, contexts = written
    found = token_rules(reading(-torch.eye(x.shape[1])), {}, activations(x.abs()), contexts, KNOBS, 0)
    assert found == {"why": "fewer than 2 latents fire on 20 of the first 4000 rows"}
