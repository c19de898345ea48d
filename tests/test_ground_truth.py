"""Rows made of known atoms: training finds the atoms again, with a dictionary twice as large as there are."""

import pytest
import torch
from test_train import TARGETS, knobs, stored

from strata.measure.quality import firing_counts
from strata.training import training

pytestmark = pytest.mark.slow

ROWS, WIDTH, ATOMS, ACTIVE = 200_000, 64, 128, 5
SETTINGS = {"latents": 2 * ATOMS, "k": ACTIVE, "batch_size": 1024, "window_rows": 262_144, "auxk_latents": 32}
SEEDS = [0]  # reports/log.md has 1 and 2
# rule -> the least mean max-cosine from atom to latent, its own settings
RULES = {
    "topk": (0.99, {"dead_after": 0.05}),
    "batchtopk": (0.99, {"dead_after": 0.05}),
    "matryoshka": (0.99, {"dead_after": 0.05, "epochs": 8, "lr": 0.005, "groups": [0.5, 1.0]}),
    "jumprelu": (0.99, {"dead_after": 0.05}),
    "relu": (0.97, {"l1_coefficient": 0.4}),
    "gated": (0.97, {"l1_coefficient": 0.4}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_atoms_are_found(rule: str, seed: int):
    """5 of 128 unit atoms a row, each times 0.5 to 1.5; the dictionary's directions begin at random."""
    random = torch.Generator().manual_seed(1000 + seed)  # not the one that the dictionary begins with
    atoms = torch.nn.functional.normalize(torch.randn(ATOMS, WIDTH, generator=random), dim=1)
    chosen = torch.rand(ROWS, ATOMS, generator=random).topk(ACTIVE, dim=1).indices
    codes = torch.zeros(ROWS, ATOMS).scatter(1, chosen, 0.5 + torch.rand(ROWS, ACTIVE, generator=random))
    splits = {"train": [0, 188_000], "validation": [188_000, 194_000], "test": [194_000, ROWS]}
    activations = stored(codes @ atoms, splits)
    least, own = RULES[rule]
    fitted = training.train(activations, knobs(**SETTINGS, rule=rule, log_every=1000, **own), TARGETS, seed)

    def recall(directions: torch.Tensor) -> float:
        return float((atoms @ directions.T).max(1).values.mean())

    alive = firing_counts(fitted.best, activations.blocks(0, ROWS)) > 0
    precision = float((atoms @ fitted.best.decoder.T).max(0).values[alive].mean())
    l0, dead = fitted.history[-1]["validation_l0"], 1 - float(alive.float().mean())
    found = recall(fitted.best.decoder)
    print(f"{rule} {seed}: recall {found:.4f} precision {precision:.3f} l0 {l0:.1f} dead {dead:.3f}")  # noqa: T201
    assert found >= least
    assert dead < 0.05
    assert recall(fitted.untrained.decoder) < 0.5
