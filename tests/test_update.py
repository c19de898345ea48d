"""The step after the gradients: row by row it is what torch does step by step."""

import pytest
import torch

from stages.sae.autoencoder import Autoencoder
from stages.sae.update import by_rows, step_by_step


def trained(update, clip: float, decay: float) -> tuple[Autoencoder, torch.optim.AdamW]:
    """An autoencoder after 20 steps on the same random gradients."""
    random = torch.Generator().manual_seed(0)
    model = Autoencoder(24, 40, random)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.95), weight_decay=decay, fused=True)
    for _ in range(20):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        with torch.no_grad():
            update(model, optimizer, clip)
    return model, optimizer


@pytest.mark.parametrize("clip", [1.0, 1e3])  # the norm of the gradients is about 44
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_by_rows_is_step_by_step(clip: float, decay: float):
    (ours, adam), (theirs, reference) = (trained(update, clip, decay) for update in (by_rows, step_by_step))
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(adam.state[found][moment], reference.state[expected][moment])
    torch.testing.assert_close(ours.decoder.norm(dim=1), torch.ones(40))
