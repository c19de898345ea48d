"""An experiment: its name, its origin, and the numbers to compare; all that tracking writes down."""

import hashlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata import auto
from strata.rows.size import Size
from strata.run.resume import main_root

MOST = 150  # numbers of an experiment's own run: MLflow draws a chart of each
HEADLINES = (  # names in the summary, what one compares first
    r"targets\.(passed|failed)",
    r"train\.\d+\.(fvu_inlier|fvu|l0|dead|delta_ce)",
    r"evaluate\.\d+\.tasks\.normal\.\w+\.sae\.auc\.[15]",
    r"stability\.\d+\.again",
    r"controls\.\d+\.\w+\.margin\.(fvu_inlier|delta_ce)",
    r"train\.\d+\.(mse|cosine|kl|ce_recovered)",
    r"evaluate\.\d+\.probing\.sae\.[15]",
    r"evaluate\.\d+\.(rules\.sae|letters\.absorbed|absorption\.absorbed)",
    r"interpret\.\d+\.(named|rule\.balanced_accuracy\.(mean|chance))",
    r"explain\.\d+\.(lm|endpoint)\.(balanced_accuracy|fuzzing|intruder)\.(mean|chance)",
    r"steer_eval\.\d+\.beating_all",
    r"invert\.\d+\.\w+",
    r"merge\.\d+\.test\.after\.(fvu_inlier|l0|delta_ce)",
    r"cluster\.\d+\.clusters",
    r"tune\.score",
)
DRAWN = ("fvu", "dead")  # of training, that an experiment's own run shows as curves
POINTS = 100  # of such a curve
KNOBS = ("rule", "latents", "k", "lr")  # of train, that an experiment's own run has for each layer


@dataclass(frozen=True)
class Experiment:
    """One run of the pipeline, as its files describe it."""

    params: dict[str, Any]  # params.yaml
    summary: dict[str, float]  # "train.9.mse": 0.0046
    scorecard: dict[str, Any]
    histories: dict[str, list[dict[str, float]]]  # by DVC's name of the stage: "train@9"
    artifacts: list[Path]  # files and folders to show
    tuned: dict[str, Any] = field(default_factory=dict)  # knobs that train took from tune
    trials: list[dict[str, Any]] = field(default_factory=list)  # of tune: number, knobs, score and its parts, curve
    sizes: dict[int, Size] = field(default_factory=dict)  # layer -> size of the rows that its SAE was trained on

    def content_key(self) -> str:
        """Return a key that is the same for two experiments exactly when all their params and numbers are the same."""
        content = [flat(self.params), self.summary, self.scorecard, self.histories]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def row(self) -> dict[str, float]:
        """Return the numbers of the experiment's own run, with its curves MOST at the most: what one compares by.

        They are how many targets pass, ``target/<metric>/<layer>/pass``, ``margin/<metric>/<layer>/<twin>/{margin,
        pass}``, and what HEADLINES names of the summary, in its order. All numbers are in the runs of the stages, and
        in summary.json.
        """
        verdicts = {f"target/{line['metric']}/{line['layer']}/pass": line["pass"] for line in self.scorecard["targets"]}
        margins = {
            f"margin/{line['metric']}/{line['layer']}/{line['twin']}/{part}": line[part]
            for line in self.scorecard.get("margins", [])
            for part in ("margin", "pass")
        }
        chosen = [name for headline in HEADLINES for name in self.summary if re.fullmatch(headline, name)]
        numbers = {**verdicts, **margins, **{name: self.summary[name] for name in chosen}}
        known = {name: float(value) for name, value in numbers.items() if value is not None}
        return dict(list(known.items())[: MOST - len({name for _, point in self.curves() for name in point})])

    def curves(self) -> list[tuple[int, dict[str, float]]]:
        """Return the points of the own run's curves, those DRAWN: step, and ``curve/fvu/<layer>`` -> value."""
        return [
            (int(row["step"]), {f"curve/{name}/{stage.partition('@')[2]}": row[name] for name in DRAWN if name in row})
            for stage, history in self.histories.items()
            if stage.startswith("train@")
            for row in thin(history, POINTS)
        ]

    def thresholds(self, stage: str) -> dict[str, float]:
        """Return the bounds of a layer's targets, for a stage ``train@9``: ``target/<metric>/{min,max,pass}``."""
        name, _, layer = stage.partition("@")
        bounds = {
            f"target/{line['metric']}/{part}": line[part]
            for line in self.scorecard["targets"]
            if name == "train" and str(line["layer"]) == layer
            for part in ("min", "max", "pass")
        }
        return {name: float(value) for name, value in bounds.items() if value is not None}

    def settled(self) -> dict[str, str]:
        """Return what params.yaml comes to for each layer: ``train.9.k`` and the other KNOBS, as text."""
        stages = [stage for stage in self.histories if stage.startswith("train@")]
        by_layer = {stage.replace("@", "."): self.stage_params(stage) for stage in stages}
        return flat({
            f"{name}.{knob}": params[knob] for name, params in by_layer.items() for knob in KNOBS if knob in params
        })  # fmt: skip

    def twins(self, stage: str) -> dict[str, dict[str, float]]:
        """Return twin -> its numbers, of a stage ``controls@9``; none of another stage."""
        numbers: dict[str, dict[str, float]] = {}
        if stage.startswith("controls@"):
            for name, value in self.stage_metrics(stage).items():
                twin, _, metric = name.partition(".")
                numbers.setdefault(twin, {})[metric] = value
        return numbers

    def stage_params(self, stage: str) -> dict[str, Any]:
        """Return the params of a stage: for ``train@9`` the section train, as tune and ``by_layer`` change it.

        `auto` becomes a number where the size of the rows is known.
        """
        section, _, layer = stage.partition("@")
        layer_param: dict[str, Any] = {"layer": int(layer)} if layer else {}
        values = {**self.params[section], **layer_param, "seed": self.params["seed"]}
        if section != "train":
            return values

        by_layer = {str(key): knobs for key, knobs in self.params["by_layer"].items()}
        values |= {**self.tuned, **by_layer.get(layer, {})}
        size = self.sizes.get(int(layer)) if layer else None
        return auto.train(values, size) if size else values

    def stage_metrics(self, stage: str) -> dict[str, float]:
        """Return the summary's numbers of a stage, without their prefix: those of ``train@9`` without ``train.9.``."""
        prefix = stage.replace("@", ".") + "."
        return {name.removeprefix(prefix): value for name, value in self.summary.items() if name.startswith(prefix)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested params to ``{"fetch.lm.source": "…"}``, each value as text of a length that MLflow accepts."""
    leaves: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = (value if isinstance(value, str) else json.dumps(value))[:6000]
    return leaves


def thin(rows: list[dict[str, float]], most: int) -> list[dict[str, float]]:
    """Choose at most ``most`` of ``rows``, evenly spaced, with the first and the last."""
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def experiment_name() -> str:
    """Return DVC's name of the experiment. A plain ``dvc repro`` is named after the commit that it starts from."""
    commit = baseline()
    return os.environ.get("DVC_EXP_NAME") or (f"repro-{commit[:7]}" if commit else "repro")


def baseline() -> str | None:
    """Return the commit that the experiment starts from; None outside of git."""
    if known := os.environ.get("DVC_EXP_BASELINE_REV"):
        return known
    try:
        git = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return git.stdout.strip()


def checkout() -> str:
    """Return a short name for this checkout on this machine, by which its live runs are told from a colleague's."""
    return hashlib.sha256(f"{socket.gethostname()}:{main_root().resolve()}".encode()).hexdigest()[:12]
