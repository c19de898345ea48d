"""Hold the probes of evaluate.tasks against sae-probes itself, on the same activations and codes.

In the environment of Strata, after `dvc repro`, write what both sides see of each of ten whole tasks of sae-probes:
the activations of the prompts' last tokens, and their codes; and probe. Then let sae-probes do the same in an
environment of its own (benchmarks/requirements-sae-probes.txt), and compare. Names of tasks at the end: only these.

    python -m benchmarks.tasks_oracle ours data/lm data/sae/9 9 /tmp/oracle
    ENV/bin/python benchmarks/tasks_oracle.py theirs /tmp/oracle
    python -m benchmarks.tasks_oracle compare /tmp/oracle

Compared are AUC, F1, accuracy and the AUC that chose C: of the SAE's latents and of the activations' channels for
k = 1, 2, 5, 16, 128, of the regression on all activations, and with few and with uneven prompts for k = 16.
"""

import json
import sys
from pathlib import Path
from typing import Any

HOOK, MODEL, SEED = "blocks.9.hook_resid_post", "gemma-3-270m", 42  # names of files for sae-probes
KS = [1, 2, 5, 16, 128]
TASKS = [  # whole, and of short prompts: 786 to 1,772 of them
    *("41_truthqa_tf", "117_us_state_FL", "118_us_state_CA", "119_us_state_TX", "130_temp_cat_Frequency"),
    *("131_temp_cat_Typical Time", "132_temp_cat_Event Ordering", "133_context_type_Causality"),
    *("134_context_type_Belief_states", "154_athlete_sport_football"),
]
FEW, UNEVEN = [74, 198], [0.1, 0.9]  # prompts to learn from; share of positive ones
COLUMNS = "columns.safetensors"


def ours(lm: str, sae: str, layer: str, folder: str, *names: str) -> None:
    """Write the shared inputs of each task into FOLDER, and what Strata's probes say."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from strata.corpus import read as corpus
    from strata.device.machine import CPU
    from strata.lm.model import load
    from strata.run import params
    from strata.sae import disk
    from strata.tasks import activations, columns, probe, prompts, read
    from strata.tasks.knobs import Tasks

    source, options = corpus.lm_path(Path(lm))
    model, (coder, _) = load(source, torch.bfloat16, CPU, **options), disk.load(Path(sae))
    section = params.read()["evaluate"]["tasks"]
    exact = {**section, "prompts": None, "distinct": False, "tokens": 1024, "pooling": ["last"]}
    for name in names or TASKS:
        home = Path(folder) / name
        asked = {**exact, "sources": [{"source": "package:sae-probes", "tasks": [name]}]}
        knobs = params.check(asked, Tasks, "evaluate.tasks")
        (home / "prompts").mkdir(parents=True, exist_ok=True)
        prompts.write(knobs, 0, home / "prompts")
        (task,) = read.tasks(home / "prompts")

        tokens = activations.tokenized(model, read.prompts(home / "prompts"), knobs.tokens)
        facts = {"model": {}, "pooling": knobs.pooling}
        activations.write(model, tokens, "resid_post", [int(layer)], facts, 1024, 65536, home / "rows")
        rows = read.open_rows(home / "rows" / layer)
        assert rows is not None
        x, codes = (columns.pooled(rows, ["last"], each)["last"][task.prompts].toarray() for each in (None, coder))
        save_file({"activations": torch.from_numpy(x), "sae": torch.from_numpy(codes)}, home / COLUMNS)
        (home / "targets.json").write_text(json.dumps(task.targets))

        y = np.array(task.targets)
        drawings = {"normal": probe.drawings("normal", y)[0]}
        drawings |= {f"scarcity {part.train}": part for part in probe.drawings("scarcity", y) if part.train in FEW}
        shares = [(round(part.share, 2), part) for part in probe.drawings("imbalance", y)]
        drawings |= {f"imbalance {share}": part for share, part in shares if share in UNEVEN}
        results: dict[str, Any] = {}
        for setting, drawing in drawings.items():
            parts = probe.draw(y, drawing, SEED)
            with probe.many_small_ones():
                for what, table in (("sae", codes), ("activations", x)):
                    probed = probe.probes(table, parts, KS if setting == "normal" else [16], "l2", SEED)
                    results |= {f"{setting} | {what} | {k}": one.scores._asdict() for k, one in probed.items()}
        (home / "ours.json").write_text(json.dumps(results))
        print(name, flush=True)


def theirs(folder: str, *names: str) -> None:
    """Run sae-probes on the shared inputs of FOLDER, in its own environment."""
    import numpy as np
    import torch
    from sae_probes import utils_data  # pyright: ignore[reportMissingImports]
    from sae_probes.run_baselines import run_baseline_dataset_layer  # pyright: ignore[reportMissingImports]
    from sae_probes.run_sae_evals import run_sae_eval  # pyright: ignore[reportMissingImports]
    from safetensors.torch import load_file
    from threadpoolctl import threadpool_limits

    for name in names or TASKS:
        home = Path(folder) / name
        columns, targets = load_file(home / COLUMNS), json.loads((home / "targets.json").read_text())
        assert (utils_data.get_yvals(name) == np.array(targets)).all(), f"other targets of {name}"
        x = columns["activations"]
        cache = home / "cache" / f"model_activations_{MODEL}"
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(x, cache / f"{name}_{HOOK}.pt")
        shared = {"hook_name": HOOK, "model_name": MODEL, "model_cache_path": home / "cache", "seed": SEED}

        settings: dict[str, dict[str, Any]] = {"normal": {"setting": "normal", "ks": KS}}
        settings |= {f"scarcity {few}": {"setting": "scarcity", "num_train": few, "ks": [16]} for few in FEW}
        settings |= {f"imbalance {share}": {"setting": "imbalance", "frac": share, "ks": [16]} for share in UNEVEN}
        results: dict[str, Any] = {}
        with threadpool_limits(1, "blas"):
            for setting, words in settings.items():
                for what in ("sae", "activations"):
                    out = home / "theirs" / what / setting
                    sae = _Lookup(x, columns[what])
                    run_sae_eval(
                        sae=sae, dataset=name, reg_type="l2", device="cpu", results_path=out, **shared, **words
                    )
                    results |= {f"{setting} | {what} | {row['k']}": _scores(row) for row in _rows(out)}
            run_baseline_dataset_layer(
                numbered_dataset=name, method_name="logreg", results_path=home / "theirs" / "all", **shared
            )
        results["normal | activations | all"] = _scores(_rows(home / "theirs" / "all")[0])
        (home / "theirs.json").write_text(json.dumps(results))
        print(name, flush=True)


class _Lookup:
    """An SAE for sae-probes that gives each row of activations the codes that Strata computed."""

    def __init__(self, x: Any, codes: Any) -> None:
        self._codes = {row.numpy().tobytes(): code for row, code in zip(x, codes, strict=True)}

    def encode(self, x: Any) -> Any:
        import torch

        return torch.stack([self._codes[row.numpy().tobytes()] for row in x])


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Read the one JSON file that sae-probes wrote into ``folder``."""
    (file,) = folder.rglob("*.json")
    return json.loads(file.read_text())


def _scores(row: dict[str, Any]) -> dict[str, float]:
    names = {"auc": "test_auc", "f1": "test_f1", "accuracy": "test_acc", "validation": "val_auc"}
    return {here: row[there] for here, there in names.items()}


def compare(folder: str) -> None:
    """Print the largest difference of each number, and where it is."""
    pairs = {}
    for file in sorted(Path(folder).glob("*/theirs.json")):
        left, right = (json.loads((file.parent / f"{side}.json").read_text()) for side in ("ours", "theirs"))
        pairs |= {f"{file.parent.name} | {key}": (left[key], right[key]) for key in right if key in left}
    if not pairs:
        raise SystemExit(f"{folder} holds no theirs.json")
    print(f"{len(pairs)} probes of {len({key.split(' | ')[0] for key in pairs})} tasks")
    for metric in ("auc", "f1", "accuracy", "validation"):
        differences = {key: abs(left[metric] - right[metric]) for key, (left, right) in pairs.items()}
        worst = max(differences, key=lambda key: differences[key])
        over = sum(difference > 1e-6 for difference in differences.values())
        print(f"{metric:>10}: at most {differences[worst]:.1e} apart ({worst}); {over} by more than 1e-6")


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    {"ours": ours, "theirs": theirs, "compare": compare}[command](*words)
