"""Measure how fast this machine is, in about five seconds, on random numbers."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from strata.device.machine import put
from strata.training.autoencoder import Autoencoder, Scale, fold
from strata.training.knobs import Train
from strata.training.named import make_rule
from strata.training.rules.topk import TopK
from strata.training.trainer import Trainer
from strata.training.training import with_threshold

WEIGHTS = 2**24  # largest encoder that is tried, in numbers; of a larger SAE, fewer latents are tried
PATIENCE = 1.0  # seconds after which a measurement begins no further run
PACE = 0.0047  # seconds of the job in `pace`, on the two cores that the constants of cost.py were measured on


@dataclass(frozen=True)
class Speed:
    """The speed of this machine.

    ``product``: operations a second of a matrix product in the forward pass's dtype. ``step``: seconds of a training
    step. ``encode``: seconds to encode one row. ``pace``: how many times as long Python and numpy take here as on the
    machine of PACE.
    """

    product: float
    step: float
    encode: float
    pace: float


def measure(width: int, knobs: Train, rows: int, dtype: torch.dtype, device: torch.device) -> Speed:
    """Measure the speed for an SAE with these ``knobs``. ``rows``: tokens that the model reads at a time."""
    step, encode = training(width, knobs, device)
    return Speed(product(width, rows, dtype, device), step, encode, pace() / PACE)


def product(width: int, rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Measure the operations a second of the product (rows, width) × (width, 4 width)."""
    x = torch.ones(rows, width, dtype=dtype, device=device)
    w = torch.ones(width, 4 * width, dtype=dtype, device=device)
    return 2 * rows * w.numel() / _seconds(lambda: x @ w, device)


def training(width: int, knobs: Train, device: torch.device) -> tuple[float, float]:
    """Measure the seconds of a real training step on random rows, and of encoding one row.

    A dictionary of more than WEIGHTS numbers is tried with fewer latents. The time is taken to grow with their number.
    """
    latents = min(knobs.latents, max(WEIGHTS // width, knobs.k))
    fewer = {"latents": latents, "auxk_latents": min(knobs.auxk_latents, latents), "encoder": None}
    all_latents, knobs = knobs.latents, knobs.model_copy(update=fewer)

    random = torch.Generator().manual_seed(0)
    scale = Scale(1.0, torch.zeros(width, device=device), 1.0)
    model = Autoencoder(width, latents, random, "kaiming", knobs.decoder_activation).to(device)
    trainer = Trainer(model, make_rule(knobs).to(device), scale, knobs, 1000, 0)
    x = put(torch.randn(knobs.batch_size, width, generator=random), device)
    step = _seconds(lambda: trainer.advance(x), device)

    with torch.inference_mode():
        sae = with_threshold(fold(model, TopK(knobs.k), scale), knobs.k, lambda: [x])
        encode = _seconds(lambda: sae.encode(x), device) / len(x)
    return step * all_latents / latents, encode * all_latents / latents


def pace() -> float:
    """Measure the seconds of a fixed job like those between products: loops in Python, sorts and sums in numpy."""

    def job() -> None:
        values = np.random.default_rng(0).random(200_000)
        np.add.at(np.zeros(1000), (values * 1000).astype(int), values[np.argsort(values)])
        sum(len(str(n)) for n in range(20_000))

    return _seconds(job, torch.device("cpu"))


def _seconds(job: Callable[[], object], device: torch.device) -> float:
    """Return the mean time of several runs of ``job``; the first run, which warms up, does not count.

    It is the mean, not the least, because what else runs on this machine will slow the stages down, too.
    """
    seconds: list[float] = []
    end = time.perf_counter() + PATIENCE
    while len(seconds) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return sum(seconds[1:]) / len(seconds[1:])
