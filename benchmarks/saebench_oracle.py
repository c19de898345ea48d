"""The metric functions of SAEBench and sae-probes, on our SAE and our rows, must give our numbers to 1 %.

Runs in an environment of its own (`benchmarks/requirements-saebench.txt`), on what `benchmarks.saebench_export` wrote
in ours. Nothing is downloaded: their functions get tensors, through stand-ins where they ask for a model and a store of
activations. What they define otherwise is printed beside ours, and decides nothing.
"""

import importlib.metadata
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from strata.run.door import BadInput, run

TOLERANCE = 0.01
OTHERWISE = "ours", "SAEBench, columns as they are", "sae-probes, C by cross-validation"
Numbers = dict[str, float]


def main(sae: str, exported: str) -> None:
    """Open the folder SAE with SAELens, and measure on the folder EXPORTED, that benchmarks.saebench_export wrote."""
    folder = Path(exported)
    if not (folder / "ours.json").is_file():
        raise BadInput(f"{exported} holds no ours.json; write it with `python -m benchmarks.saebench_export`")
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae  # pyright: ignore[reportMissingImports]
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]

    ours, tensors = json.loads((folder / "ours.json").read_text()), load_file(folder / "tensors.safetensors")
    _, loaded, _ = load_and_format_sae("ours", SAE.load_from_disk(sae), "cpu")
    theirs, other = core(loaded, tensors["test"])
    theirs["meta_explained"] = meta(SAE.load_from_disk(str(folder / "meta")), loaded.W_dec.detach())
    compared = {
        name: {"ours": ours["numbers"][name], "theirs": value, "error": abs(ours["numbers"][name] / value - 1)}
        for name, value in theirs.items()
    }
    pooled, probes = means(loaded, tensors), probing(ours["tasks"], tensors)
    agree = [line["error"] for line in compared.values()] + [
        pooled,
        *(line["error"] for line in probes["same"].values()),
    ]
    passed = all(error <= TOLERANCE for error in agree) and probes["chosen_alike"] >= 1 - TOLERANCE
    report = {
        "layer": ours["layer"],
        **{name: importlib.metadata.version(name) for name in ("sae-bench", "sae-probes", "sae-lens")},
        "numbers": compared,
        "mean_codes_error": pooled,
        "probing": probes,
        "otherwise_defined": other,
        "tolerance": TOLERANCE,
        "pass": passed,
    }
    print(json.dumps(report, indent=2))
    if not passed:
        raise BadInput(f"SAEBench and Strata differ on {sae} by more than {TOLERANCE}")


@torch.no_grad()
def core(sae: Any, x: Tensor) -> tuple[Numbers, Numbers]:
    """SAEBench's core metrics on the rows ``x`` as one text, under our names; and those that it defines otherwise."""
    from sae_bench.evals.core import main as theirs  # pyright: ignore[reportMissingImports]

    hook = sae.cfg.hook_name
    model = SimpleNamespace(run_with_cache=lambda tokens, **_: (None, {hook: x[None]}))
    store = SimpleNamespace(get_batch_tokens=lambda size: torch.ones(1, len(x), dtype=torch.long))
    settings = dict.fromkeys(
        ("compute_l2_norms", "compute_sparsity_metrics", "compute_variance_metrics",
         "compute_featurewise_density_statistics"), True,
    )  # fmt: skip
    found, of_latents = theirs.get_sparsity_and_variance_metrics(
        sae, model, store, n_batches=1, eval_batch_size_prompts=1, model_kwargs={}, **settings
    )
    of_latents |= theirs.get_featurewise_weight_based_metrics(sae)
    shares = theirs.calculate_misc_metrics(of_latents)
    same = {
        "l0": found["l0"], "cosine": found["cossim"], "l2_ratio": found["l2_ratio"],
        "relative_reconstruction_bias": found["relative_reconstruction_bias"],
        "squared_error": found["mse"] * len(x),  # theirs is divided by the rows twice
        "frequency_above_0.01": shares["freq_over_1_percent"], "frequency_above_0.1": shares["freq_over_10_percent"],
        "nearest_decoder": shares["average_max_decoder_cosine_sim"],
        "nearest_encoder": shares["average_max_encoder_cosine_sim"],
    }  # fmt: skip
    names = ("explained_variance", "explained_variance_legacy", "mse")
    return same, {name: found[name] for name in names}


def meta(sae: Any, decoder: Tensor) -> float:
    """Their share of the decoder's variance that our meta-SAE explains."""
    from sae_bench.evals.meta_structure.main import (  # pyright: ignore[reportMissingImports]
        _decoder_variance_metrics,
    )

    assert isinstance(sae, nn.Module)
    return _decoder_variance_metrics(sae, decoder, len(decoder))[0]


def means(sae: Any, tensors: dict[str, Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ of the mean codes of documents."""
    from sae_bench.sae_bench_utils.activation_collection import (  # pyright: ignore[reportMissingImports]
        get_sae_meaned_activations,
    )

    with torch.no_grad():
        theirs = get_sae_meaned_activations({"all": tensors["documents"]}, sae, 8)["all"]
    return float((tensors["sae_means"] - theirs).norm() / theirs.norm())


def probing(tasks: list[dict[str, Any]], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Their choice of latents and their probes on our splits: on columns that we standardised the same as ours; on
    columns as they are, and with sae-probes' choice of latents and of C, not."""
    from sae_bench.evals.sparse_probing import probe_training as bench  # pyright: ignore[reportMissingImports]
    from sae_probes.run_sae_evals import get_sorted_indices, mean_act_normalization  # pyright: ignore[reportMissingImports]
    from sae_probes.utils_training import find_best_reg  # pyright: ignore[reportMissingImports]

    warnings.simplefilter("ignore")  # theirs does not converge on columns as they are, and says so each time
    alike, found, other = [], {}, {}
    for task in tasks:
        columns = tensors[f"{task['what']}_means"]
        train, test = (columns[tensors[f"{side}.{task['split']}"]] for side in ("train", "test"))
        truth, truth_test = ((torch.arange(len(x)) < len(x) // 2).int() for x in (train, test))
        scaled, scaled_test = standardised(train, test)
        for k, ours in task["accuracy"].items():
            mask = bench.get_top_k_mean_diff_mask(train, truth, int(k))
            chosen = (~mask).nonzero().flatten()
            sorted_by_probes = get_sorted_indices(train, truth, None)[: int(k)]
            alike.append(set(chosen.tolist()) == set(task["strongest"][: int(k)]) == set(sorted_by_probes.tolist()))
            name, probe = f"{task['what']} k={k}", bench.train_sklearn_probe
            _, same = probe(scaled[:, chosen], truth, scaled_test[:, chosen], truth_test)
            found.setdefault(name, []).append((ours, float(same)))
            if task["what"] == "sae" and task["split"].endswith(".0"):  # they take long
                _, plain = probe(train[:, chosen], truth, test[:, chosen], truth_test)
                by_mean = get_sorted_indices(train, truth, mean_act_normalization)[: int(k)]
                parts = (train[:, by_mean], truth, test[:, by_mean], truth_test)
                best = find_best_reg(*(part.numpy() for part in parts))
                other.setdefault(name, []).append((ours, float(plain), best.metrics.test_acc))
    mean = {name: np.mean(lines, axis=0).tolist() for name, lines in found.items()}
    otherwise = {name: np.mean(lines, axis=0).tolist() for name, lines in other.items()}
    return {
        "chosen_alike": float(np.mean(alike)),
        "same": {
            name: {"ours": one, "theirs": same, "error": abs(one / same - 1)} for name, (one, same) in mean.items()
        },
        "otherwise_defined": {name: dict(zip(OTHERWISE, line, strict=True)) for name, line in otherwise.items()},
    }


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """By the training documents' means and deviations, as evaluate does."""
    mean, deviation = train.mean(0), train.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1)
    return (train - mean) / scale, (test - mean) / scale


if __name__ == "__main__":
    run(main)
