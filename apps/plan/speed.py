"""How fast this machine is, measured in about five seconds on made-up numbers."""

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

WEIGHTS = 2**24  # of an SAE that is tried; of a larger one, as many latents as make that
PATIENCE = 1.0  # seconds for each measurement, and what is begun
PACE = 0.0047  # seconds of the job in `pace`, on the two cores that the constants of cost.py were measured on


@dataclass(frozen=True)
class Speed:
    """``product``: operations a second of a matrix product in the forward pass's dtype. ``step``: seconds of a
    training step. ``encode``: seconds of a row's codes. ``pace``: how many times as long as on the machine of PACE
    Python and numpy take."""

    product: float
    step: float
    encode: float
    pace: float


def measure(width: int, knobs: Train, rows: int, dtype: torch.dtype, device: torch.device) -> Speed:
    """``rows``: tokens that the model reads at a time."""
    step, encode = training(width, knobs, device)
    return Speed(product(width, rows, dtype, device), step, encode, pace() / PACE)


def product(width: int, rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of (rows, width) × (width, 4 width)."""
    x = torch.ones(rows, width, dtype=dtype, device=device)
    w = torch.ones(width, 4 * width, dtype=dtype, device=device)
    return 2 * rows * w.numel() / _seconds(lambda: x @ w, device)


def training(width: int, knobs: Train, device: torch.device) -> tuple[float, float]:
    """Seconds of a real training step on random rows, and of encoding one row.

    A dictionary of more than WEIGHTS numbers is tried with fewer latents, and time taken to grow with their number.
    """
    latents = min(knobs.latents, max(WEIGHTS // width, knobs.k))
    fewer = {"latents": latents, "auxk_latents": min(knobs.auxk_latents, latents), "encoder": None}
    most, knobs = knobs.latents, knobs.model_copy(update=fewer)
    random = torch.Generator().manual_seed(0)
    scale = Scale(1.0, torch.zeros(width, device=device), 1.0)
    model = Autoencoder(width, latents, random, "kaiming", knobs.decoder_activation).to(device)
    trainer = Trainer(model, make_rule(knobs).to(device), scale, knobs, 1000, 0)
    x = put(torch.randn(knobs.batch_size, width, generator=random), device)
    step = _seconds(lambda: trainer.advance(x), device)
    with torch.inference_mode():
        sae = with_threshold(fold(model, TopK(knobs.k), scale), knobs.k, lambda: [x])
        encode = _seconds(lambda: sae.encode(x), device) / len(x)
    return step * most / latents, encode * most / latents


def pace() -> float:
    """Seconds of a fixed job of the kind that stages do between products: loops in Python, sorts and sums in numpy."""

    def job() -> None:
        values = np.random.default_rng(0).random(200_000)
        np.add.at(np.zeros(1000), (values * 1000).astype(int), values[np.argsort(values)])
        sum(len(str(n)) for n in range(20_000))

    return _seconds(job, torch.device("cpu"))


def _seconds(job: Callable[[], object], device: torch.device) -> float:
    """The mean of several runs, after one that is not counted: what others do on this machine counts, too."""
    found, end = [], time.perf_counter() + PATIENCE
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return sum(found[1:]) / len(found[1:])
