"""The measures of evaluate that train SAEs of their own: absorption, the meta-SAE."""

import pytest
import torch
from test_evaluate import generator
from test_train import knobs

from strata.evaluation import absorption as hierarchy
from strata.evaluation.absorption import absorbed, absorption
from strata.evaluation.meta import explained, meta_sae
from strata.sae.sae import SAE

PARENT, CHILD, OTHER = torch.eye(4)[:3]


def hand_made(directions: torch.Tensor, reads: torch.Tensor) -> SAE:
    zero = torch.zeros(len(directions))
    return SAE(reads, zero, directions, torch.zeros(4), threshold=zero + 1e-3)


def test_absorption_by_hand():
    """Rows with parent and child. Apart: a latent each. Absorbed: the child's latent writes both, and the parent's is
    silent where there is a child. Lost: no latent writes the parent there."""
    x = (PARENT + CHILD) * torch.linspace(0.5, 1.5, 20)[:, None] + OTHER * (torch.arange(20) % 2)[:, None]
    apart = hand_made(torch.stack([PARENT, CHILD, OTHER]), torch.stack([PARENT, CHILD, OTHER]))
    assert absorbed(apart, x, PARENT, [0]) == {"absorbed": 0.0, "lost": 0.0}
    both = torch.stack([PARENT, (PARENT + CHILD) / 2**0.5, OTHER])
    full = hand_made(both, torch.stack([PARENT - CHILD, CHILD * 2**0.5, OTHER]))
    assert torch.allclose(full.reconstruct(x)[0], x, atol=1e-5)
    assert absorbed(full, x, PARENT, [0]) == {"absorbed": 1.0, "lost": 0.0}
    lost = hand_made(apart.decoder, torch.stack([PARENT - CHILD, CHILD, OTHER]))
    assert absorbed(lost, x, PARENT, [0]) == {"absorbed": 0.0, "lost": 1.0}
    weak = hand_made(torch.stack([PARENT, CHILD + 0.3 * PARENT, OTHER]), full.encoder)  # it writes 0.3 √2 of the parent
    assert absorbed(weak, x, PARENT, [0])["absorbed"] == 1.0
    weaker = hand_made(torch.stack([PARENT, CHILD + 0.2 * PARENT, OTHER]), full.encoder)
    assert absorbed(weaker, x, PARENT, [0]) == {"absorbed": 0.0, "lost": 1.0}


def test_the_made_up_hierarchy():
    made = hierarchy.hierarchy(generator(), 20_000)
    parent = made.x @ made.parent > 0.4
    assert parent[made.child].all()  # a child implies its parent
    assert float(parent.float().mean()) == pytest.approx(0.4, abs=0.02)
    assert float(made.child.float().mean()) == pytest.approx(0.2, abs=0.02)


def test_top_k_absorbs_and_an_untrained_sae_cannot():
    """Top-k pays for every active latent."""
    found = absorption(knobs(rule="topk", lr=4e-3, epochs=5), [0])
    assert found["absorbed"]["value"] > 0.3 and found["lost"]["value"] < 0.1
    assert found["controls"]["untrained"]["absorbed"]["value"] < 0.1


def test_shared_directions_are_explained():
    """Rows that are two of 24 atoms each, beside random ones."""
    random = generator()
    atoms = torch.nn.functional.normalize(torch.randn(24, 32, generator=random), dim=1)
    chosen = torch.rand(256, 24, generator=random).topk(2, dim=1).indices
    shared = torch.nn.functional.normalize(atoms[chosen].sum(1), dim=1)
    alone = torch.nn.functional.normalize(torch.randn(256, 32, generator=random), dim=1)
    first, second = (explained(meta_sae(rows, knobs(lr=4e-3), 0, 200), rows) for rows in (shared, alone))
    assert first > 0.9 > 0.8 > second > 0.1
