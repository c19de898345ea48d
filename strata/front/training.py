"""An SAE and everything that training says of it, in one call."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from strata import notebook
from strata.corpus.read import LANGUAGE, OWN_VECTORS
from strata.front.activations import LayerActivations
from strata.front.files import save
from strata.front.own import store
from strata.lm.model import LanguageModel
from strata.measure import controls
from strata.notebook import Vectors
from strata.rows import batches
from strata.rows.size import Size
from strata.run import door
from strata.run.door import BadInput
from strata.sae.sae import SAE
from strata.splicing.held_out import held_out
from strata.training import training
from strata.training.knobs import Train

LEAST_BATCHES = 8  # of an epoch


@dataclass(frozen=True)
class Fitted:
    """A trained SAE.

    ``sae``: the best checkpoint by validation. ``final``: as the training ended. ``history``: a line a logged step.
    ``quality``: what held-out rows say of the SAE and, beside it, of its controls (PCA with as many numbers a row, an
    untrained SAE, the mean), a line each; of a language model's activations also what predicting with the
    reconstruction costs (``delta_ce``, in nats).
    """

    sae: SAE = field(repr=False)
    final: SAE = field(repr=False)
    history: pd.DataFrame = field(repr=False)
    quality: pd.DataFrame
    knobs: Train = field(repr=False)
    origin: dict[str, Any] = field(repr=False)

    def save(self, folder: str | Path) -> None:
        """As :func:`strata.save`."""
        save(self, folder)


def train(
    rows: Any,
    rule: str | None = None,
    latents: int | None = None,
    k: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    ce_tokens: int | None = None,
    layer: int | None = None,
    **knobs: Any,
) -> "Fitted | notebook.Trained":
    """Train an SAE on ``rows``, choose its checkpoint on validation rows and judge it on test rows.

    ``rows``: what :func:`strata.activations` gives for one layer, Vectors, or rows of your own, as :func:`strata.store`
    takes them: a file of states, an array, an iterator of shards; ``layer`` is then the layer that they are from.
    ``rule``: topk, batchtopk, matryoshka, jumprelu, relu, gated. ``latents``: hidden units. ``k``: active latents a
    row. What is not given is as in params.yaml, or follows from the number of rows and their width
    (`strata/auto.py`). ``knobs``: others of the section train, such as ``lr`` or ``batch_size``. ``ce_tokens``:
    held-out tokens that the language model predicts with the reconstruction in place; 0: none.

    The same arguments give the same bits on one machine with one number of torch threads.

    >>> sae = strata.train(acts[6], rule="topk", latents=4096, k=32)                      # doctest: +SKIP
    >>> sae.quality[["what", "fvu", "l0", "delta_ce"]]                                    # doctest: +SKIP
    >>> strata.train("layer_6_states.npy", layer=6).save("my-sae")                        # doctest: +SKIP
    """
    if rule is not None:
        knobs["rule"] = rule
    if knobs.get("from") is None:
        knobs.pop("from", None)  # as params.yaml has it: an SAE is trained
    if isinstance(rows, Vectors):
        return notebook.train(rows, latents, k, epochs, seed, door.device(device), watch, **knobs)
    door.whole("seed", seed, 0, 2**32 - 1)
    if not isinstance(rows, LayerActivations):
        rows = store(rows, layer, seed=seed)
    elif layer is not None and layer != rows.layer:
        raise BadInput(f"layer is {layer}, but the rows are of layer {rows.layer}; leave it out")
    on = door.device(device)
    batches.check_held_out(rows, "test")

    # Fewer rows than some batches of the default size make smaller batches.
    trained = rows.split("train")[1] - rows.split("train")[0]
    if "batch_size" not in knobs:
        knobs["batch_size"] = min(1024, 2 ** max(4, (trained // LEAST_BATCHES).bit_length() - 1))
    size = Size(OWN_VECTORS if rows.hook == OWN_VECTORS else LANGUAGE, trained, rows.width)
    settings, targets = notebook.settings_of(size, latents, k, epochs, knobs)

    fitted = training.train(rows, settings, targets, seed, watch, device=on)
    table = judged(fitted, rows, settings, ce_tokens, on)
    history = pd.DataFrame(fitted.history)
    origin = {
        "model_name": rows.activations.meta["model"]["name"],
        "hook_name": rows.activations.hook_name,
        "context_size": rows.contexts.meta["context"],
        "training_architecture": settings.rule,
        "l0": table[0]["l0"],  # the SAE stands first
        "seed": seed,
    }
    return Fitted(fitted.best, fitted.saes["final"], history, pd.DataFrame(table), settings, origin)


def judged(
    fitted: training.Fitted,
    rows: LayerActivations,
    settings: Train,
    ce_tokens: int | None,
    device: torch.device,
) -> list[dict[str, Any]]:
    """A line each for the SAE and its controls on the test rows."""
    candidates = controls.named(fitted.best.reconstruct, fitted.untrained.reconstruct, rows, settings.k, device)
    lm: LanguageModel | None = rows.lm
    tokens = settings.ce_tokens if ce_tokens is None else ce_tokens
    hook: Any = rows.hook
    found, _ = held_out(candidates, rows, rows.contexts, hook, lm, tokens if lm else 0, device)
    return [{"what": name, **values} for name, values in found.items()]
