"""Small trainings of evaluate's own: rows in memory, train's knobs but for those that the rows need."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from strata.rows.batches import in_memory
from strata.run import params
from strata.sae.knobs import Train
from strata.sae.sae import SAE
from strata.sae.training import training
from strata.sae.training.fit import Fitted
from strata.verdict.targets import Targets

PLAIN = {
    "encoder": None, "decoder_activation": "identity", "micro_batches": 1, "skip_outliers": False, "keep_every": None,
}  # fmt: skip
FREE = params.check({"enforce": False, "l0": {"min": 0.0}}, Targets, "targets")  # fvu alone chooses the checkpoint


def train(
    x: Tensor, splits: Mapping[str, tuple[int, int]], knobs: Train, changes: Mapping[str, Any], seed: int
) -> tuple[Fitted, SAE]:
    """The result, and the SAE that it started from, on the device of ``x`` (row, width); ``splits``: first row and end
    of train, validation and test."""
    own = params.check({**knobs.model_dump(), **PLAIN, **changes}, Train, "params.yaml: train, as evaluate changes it")
    return training.train(in_memory(x.cpu().float(), splits), own, FREE, seed, device=x.device)
