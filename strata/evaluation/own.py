"""Train small SAEs for evaluate on rows in memory: with train's knobs, except those in PLAIN and in ``changes``."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from strata.rows.batches import in_memory
from strata.run import params
from strata.training import training
from strata.training.fit import Fitted
from strata.training.knobs import Train
from strata.verdict.targets import Targets

PLAIN = {
    "encoder": None, "decoder_activation": "identity", "micro_batches": 1, "outliers": "keep", "keep_every": None,
}  # fmt: skip
# No target costs anything: fvu chooses the checkpoint, with the price of those rules that have one.
FREE = params.check({"enforce": False, "l0": {"min": 0.0}}, Targets, "targets")


def train(
    x: Tensor, splits: Mapping[str, tuple[int, int]], knobs: Train, changes: Mapping[str, Any], seed: int
) -> Fitted:
    """Train on ``x`` (row, width), on its device.

    ``splits``: the first row and the end of train, validation and test. ``changes``: knobs that replace those of
    ``knobs``.
    """
    where = "params.yaml: train, as evaluate changes it"
    changed = params.check({**knobs.model_dump(), **PLAIN, **changes}, Train, where)
    return training.train(in_memory(x.cpu().float(), splits), changed, FREE, seed, device=x.device)
