"""`sae_lens.synthetic` scores the same dictionary, and draws from the same true features, as `strata/synthetic/`.

Runs in an environment of its own (`benchmarks/requirements-saelens.txt`), on the file that
`python -m benchmarks.synthetic_export oracle.safetensors` wrote in ours:

    python -m benchmarks.synthetic_oracle oracle.safetensors

* Scores on the same decoder, codes and activations must agree to 1e-6.
* Zipf probabilities, their compensation and the orthogonalised directions must agree to rounding.
* SAELens's hierarchy must leave activations that we drew as they are, to the bit: no child without its parent, no two
  siblings that exclude each other.
* Its generator, with our probabilities, magnitudes, correlations and trees, must draw what ours draws, up to sampling
  error. For each count, z = (a - b) / √(a + b) of the two sides (rows on which a feature fires, on which two fire
  together, with so many active), or the same for mean magnitudes. Over many counts, the root mean square of z must be
  near 1. The controls, generators without correlations and without exclusion, must not pass.
"""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from strata.run.door import BadInput, run

TOLERANCE = 1e-6  # of scores, relative
ROUNDING = 1e-4  # of a hundred steps of Adam in float32, which divides small numbers
LEAST = 25  # a count below this has no Gaussian error, and is left out
NEAR = 0.85, 1.15  # where the root mean square of z must lie
BATCH = 2048
PAIRS = 256  # how often any two of the first features fire together is counted

Tensors = dict[str, Tensor]


@dataclass
class Counts:
    """What the true activations of some rows add up to.

    ``fired``, ``size``, ``square``: (feature,), rows on which each feature is active, and its Σ and Σ of squares there.
    ``together``: (PAIRS, PAIRS), rows on which two features are both active. ``l0``: (most + 1,), rows by their number
    of active features. Float64.
    """

    fired: Tensor
    size: Tensor
    square: Tensor
    together: Tensor
    l0: Tensor

    @classmethod
    def empty(cls, features: int) -> "Counts":
        fired, size, square = torch.zeros(3, features, dtype=torch.float64)
        together, l0 = (torch.zeros(shape, dtype=torch.float64) for shape in ((PAIRS, PAIRS), (features + 1,)))
        return cls(fired, size, square, together, l0)

    def add(self, activations: Tensor) -> None:
        """Add rows of ``activations`` (row, feature)."""
        active = activations > 0
        self.fired += active.sum(0)
        self.size += activations.sum(0, dtype=torch.float64)
        self.square += activations.square().sum(0, dtype=torch.float64)
        first = active[:, :PAIRS].float()
        self.together += first.T @ first
        self.l0 += torch.bincount(active.sum(1), minlength=len(self.l0))


def differs(ours: float, theirs: float) -> float:
    """Their difference, relative where they are above 1."""
    return abs(ours - theirs) / max(1.0, abs(theirs))


def scores(t: Tensors) -> dict[str, float]:
    """SAELens's scores of our dictionary, under our names."""
    from sae_lens.evals import ExplainedVarianceCalculator  # pyright: ignore[reportMissingImports]
    from sae_lens.synthetic import evals  # pyright: ignore[reportMissingImports]

    decoder, directions, codes, activations = t["decoder"], t["directions"], t["codes"], t["activations"]
    metrics = evals.compute_classification_metrics(codes, activations, decoder, directions)
    variance, l0, true_l0 = ExplainedVarianceCalculator(), evals.L0Calculator(), evals.L0Calculator()
    dead = evals.DeadLatentsCalculator(len(decoder))
    for first in range(0, len(codes), BATCH):
        rows = slice(first, first + BATCH)
        variance.add_batch(t["reconstruction"][rows], t["x"][rows])
        l0.add_batch(codes[rows])
        true_l0.add_batch(activations[rows])
        dead.add_batch(codes[rows])
    return {
        "f1": metrics.f1_score,
        "precision": metrics.precision,
        "recall": metrics.recall,
        "mcc": evals.mean_correlation_coefficient(decoder, directions),
        "uniqueness": evals.feature_uniqueness(decoder, directions),
        "dead": dead.compute() / len(decoder),
        "fvu": 1 - variance.compute(),
        "l0": l0.compute(),
        "true_l0": true_l0.compute(),
    }


def roots(t: Tensors, exclude: bool, scale: bool) -> list[Any]:
    """Our trees as SAELens's nodes."""
    from sae_lens.synthetic.hierarchy import HierarchyNode  # pyright: ignore[reportMissingImports]

    parent, exclusive = t["parent"].tolist(), t["exclusive"].tolist()
    children: dict[int, list[int]] = {}
    for feature, above in enumerate(parent):
        children.setdefault(above, []).append(feature)

    def node(feature: int) -> Any:
        below = [node(child) for child in children.get(feature, [])]
        return HierarchyNode(feature, below, exclude and exclusive[feature], scale and bool(below))

    return [node(feature) for feature in children[-1] if feature in children]


def generator(t: Tensors, correlated: bool = True, exclude: bool = True) -> Any:
    """SAELens's generator of our true features."""
    from sae_lens.synthetic.activation_generator import (  # pyright: ignore[reportMissingImports]
        ActivationGenerator,
    )
    from sae_lens.synthetic.hierarchy import hierarchy_modifier  # pyright: ignore[reportMissingImports]

    loadings = t["loadings"]
    return ActivationGenerator(
        num_features=len(t["mean"]),
        firing_probabilities=t["probability"],
        std_firing_magnitudes=t["deviation"],
        mean_firing_magnitudes=t["mean"],
        modify_activations=hierarchy_modifier(roots(t, exclude, scale=True)),
        correlation_matrix=(loadings, 1 - loadings.square().sum(1)) if correlated else None,
    )


@torch.inference_mode()
def counted(drawing: Any, rows: int, like: Tensors, seed: int) -> Tensors:
    """What our side counted, of ``rows`` rows that SAELens draws."""
    torch.manual_seed(seed)  # noqa: TID251, SAELens draws from the global generator
    counts = Counts.empty(len(like["mean"]))
    for first in range(0, rows, BATCH):
        counts.add(drawing.sample(min(BATCH, rows - first)))
    return {f"counts.{name}": value for name, value in vars(counts).items()}


def rms(z: Tensor) -> float:
    return float(z.square().mean().sqrt())


def apart(ours: Tensor, theirs: Tensor, variance: Tensor | None = None) -> float:
    """The root mean square of z over the counts that are large enough."""
    enough = (ours >= LEAST) & (theirs >= LEAST)
    spread = ours + theirs if variance is None else variance
    return rms(((ours - theirs) / spread.sqrt())[enough])


def compared(ours: Tensors, theirs: Tensors, rows: int) -> dict[str, float]:
    """How far the counts of both sides are apart, in their sampling errors; about 1 where both draw the same."""

    def moments(t: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        fired = t["counts.fired"]
        mean = t["counts.size"] / fired.clamp(min=1)
        return fired, mean, (t["counts.square"] / fired.clamp(min=1) - mean.square()).clamp(min=0) / fired.clamp(min=1)

    (fired, mean, variance), (fired_, mean_, variance_) = moments(ours), moments(theirs)
    enough = (fired >= LEAST) & (fired_ >= LEAST)
    pair = torch.ones_like(ours["counts.together"]).triu(1).bool()
    share = (fired + fired_) / (2 * rows)
    return {
        "rates": apart(fired, fired_, (fired + fired_) * (1 - share)),
        "pairs": apart(ours["counts.together"][pair], theirs["counts.together"][pair]),
        "magnitudes": rms(((mean - mean_) / (variance + variance_).sqrt())[enough]),
        "l0": apart(ours["counts.l0"], theirs["counts.l0"]),
        "mean_l0": float(fired.sum()) / rows,
        "mean_l0_saelens": float(fired_.sum()) / rows,
    }


def near(found: dict[str, float]) -> bool:
    """Whether all four are near 1; l0 has few counts, so it may be lower."""
    wide = {"rates": NEAR, "pairs": NEAR, "magnitudes": NEAR, "l0": (0.4, 1.6)}
    return all(low <= found[name] <= high for name, (low, high) in wide.items())


@torch.no_grad()
def main(path: str) -> None:
    """Print how SAELens's scores and drawings compare with those of PATH, as one JSON object."""
    if not Path(path).is_file():
        raise BadInput(f"{path} is missing; write it with `python -m benchmarks.synthetic_export`")
    from sae_lens.synthetic import feature_dictionary  # pyright: ignore[reportMissingImports]
    from sae_lens.synthetic.firing_probabilities import (  # pyright: ignore[reportMissingImports]
        zipfian_firing_probabilities,
    )
    from sae_lens.synthetic.hierarchy import Hierarchy, hierarchy_modifier  # pyright: ignore[reportMissingImports]

    t = load_file(path)
    config = {name.removeprefix("config."): float(value) for name, value in t.items() if name.startswith("config.")}
    theirs = scores(t)
    worst = {name: differs(float(t[f"score.{name}"]), value) for name, value in theirs.items()}

    # What follows from the configuration alone.
    zipf = zipfian_firing_probabilities(len(t["mean"]), config["exponent"], config["most"], config["least"])
    factors = Hierarchy(roots(t, True, True), None).compute_probability_correction_factors(zipf)
    with torch.enable_grad():
        turned = feature_dictionary.orthogonalize_embeddings(t["start"], int(config["steps"]), config["rate"])
    formulas = {
        "zipf": float((zipf - t["zipf"]).abs().max()),
        "compensated": float(((zipf * factors).clamp(max=1) - t["probability"]).abs().max()),
        "orthogonal": float((turned - t["orthogonal"]).abs().max()),
    }
    allowed = hierarchy_modifier(roots(t, True, False))(t["activations"])
    broken = int((allowed != t["activations"]).sum())

    rows = int(t["rows"])
    drawn = compared(t, counted(generator(t), rows, t, 0), rows)
    controls = {
        "uncorrelated": compared(t, counted(generator(t, correlated=False), rows, t, 0), rows),
        "not exclusive": compared(t, counted(generator(t, exclude=False), rows, t, 0), rows),
    }

    passes = {
        "scores": all(value <= TOLERANCE for value in worst.values()),
        "formulas": formulas["zipf"] < TOLERANCE
        and formulas["compensated"] < TOLERANCE
        and formulas["orthogonal"] < ROUNDING,
        "hierarchy": broken == 0,
        "drawn": near(drawn),
        "controls fail": not any(map(near, controls.values())),
    }
    found = {
        "sae_lens": importlib.metadata.version("sae-lens"),
        "scores": {name: {"ours": float(t[f"score.{name}"]), "theirs": value} for name, value in theirs.items()},
        "scores_differ_by": worst,
        "formulas_differ_by": formulas,
        "activations_that_break_the_hierarchy": broken,
        "rows": rows,
        "z": drawn,
        "z_of_controls": controls,
        "pass": passes,
    }
    print(json.dumps(found, indent=2))
    if not all(passes.values()):
        raise BadInput(f"SAELens and Strata differ in: {', '.join(name for name, ok in passes.items() if not ok)}")


if __name__ == "__main__":
    run(main)
