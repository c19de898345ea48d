"""The step after the gradients: row by row it is what torch does step by step."""

import pytest
import torch

from strata.training.autoencoder import LENGTH, Autoencoder
from strata.training.rules.topk import TopK
from strata.training.update import AdamW, by_rows, step_by_step


class Torch(AdamW):
    """The steps of torch's own."""

    def __init__(self, parameters, beta1: float, beta2: float, decay: float) -> None:
        super().__init__(parameters, beta1, beta2, decay)
        self.torch = torch.optim.AdamW(self.parameters, betas=(beta1, beta2), weight_decay=decay, fused=True)

    def advance(self) -> None:
        self.torch.param_groups[0]["lr"] = self.lr
        self.torch.step()


def trained(update, adam: type[AdamW], clip: float, decay: float) -> tuple[Autoencoder, AdamW]:
    """An autoencoder after 20 steps on the same random gradients."""
    random = torch.Generator().manual_seed(0)
    model = Autoencoder(24, 40, random)
    optimizer = adam(model.parameters(), 0.8, 0.95, decay)
    for step in range(20):
        optimizer.lr = 1e-2 / (1 + step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        with torch.no_grad():
            update(model, optimizer, clip)
    return model, optimizer


@pytest.mark.parametrize("clip", [1.0, 1e3])  # the norm of the gradients is about 44
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_by_rows_is_step_by_step(clip: float, decay: float):
    (ours, adam), (theirs, reference) = (trained(update, AdamW, clip, decay) for update in (by_rows, step_by_step))
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(adam.moments(found), reference.moments(expected))
    torch.testing.assert_close(ours.decoder.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(ours.length, theirs.length)
    assert decay or ours.length.min() > LENGTH


@pytest.mark.parametrize("update", [by_rows, step_by_step])
def test_a_row_grows_and_then_turns_less(update):
    """By hand: Adam's first step is as long as lr, whatever the gradient across the row; what lies along it is out."""
    model = Autoencoder(2, 2, torch.Generator())
    model.decoder.data.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    model.length.copy_(torch.tensor([0.1, 0.4]))
    optimizer = AdamW(model.parameters(), 0.9, 0.99, 0.0)
    optimizer.lr = 0.1
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.decoder.grad = torch.tensor([[7.0, 3.0], [0.0, 5.0]])
    with torch.no_grad():
        update(model, optimizer, 1e9)
    torch.testing.assert_close(model.length, torch.tensor([0.02, 0.17]).sqrt())  # of (0.1, −0.1) and (0.4, −0.1)
    torch.testing.assert_close(model.decoder[:, 1] / model.decoder[:, 0], torch.tensor([-1.0, -0.25]))


def test_a_resampled_row_begins_short_again():
    random = torch.Generator().manual_seed(0)
    model = Autoencoder(24, 40, random)
    model.length.fill_(2.0)
    run = model(torch.randn(8, 24, generator=random), TopK(3), random)
    model.resample(run, torch.tensor([1, 4]), random)
    expected = torch.full((40,), 2.0)
    expected[[1, 4]] = LENGTH
    torch.testing.assert_close(model.length, expected)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_steps_are_those_of_torch(decay: float):
    (ours, _), (theirs, _) = (trained(step_by_step, adam, 1.0, decay) for adam in (AdamW, Torch))
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(found, expected)
