"""Write the tables of docs/reference-run.md from the reports of a finished run: `python -m benchmarks.reference`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from strata.run import params
from strata.run.door import run
from strata.run.files import read_json

POOLINGS = {"last": "last token", "mean": "mean over the prompt"}
NAMES = {
    "sae": "SAE, seed 0",
    "seeds": "**SAE, mean over seeds**",
    "frozen_decoder": "decoder frozen at random",
    "frozen_encoder": "encoder frozen at random",
    "untrained": "random encoder, as sparse",
    "residual": "channels of the activations",
    "shuffled": "SAE, labels shuffled",
}
METRICS = ("fvu_inlier", "fvu", "mse", "l0", "delta_ce", "kl", "dead")

Numbers = dict[str, Any]


def main(reports: str = "reports") -> None:
    """REPORTS: the folder of that name of the run.

    Example: python -m benchmarks.reference
    """
    folder = Path(reports)
    layers = params.load("layers", list[int])
    for title, lines in (
        ("Reconstruction", _reconstruction(folder, layers)),
        ("Tasks", (line for layer in layers for line in _tasks(folder, layer))),
        ("Stability", _stability(folder, layers)),
        ("Token rules", _rules(folder, layers)),
        ("Steering", _steering(folder, layers)),
    ):
        print(f"\n## {title}\n", *lines, sep="\n")


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), _row(*["---"] * len(cells))]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _interval(measure: Numbers, digits: int = 3) -> str:
    """Write a number with its interval."""
    return f"{measure['value']:.{digits}f} ({measure['low']:.{digits}f} to {measure['high']:.{digits}f})"


def _reconstruction(folder: Path, layers: Sequence[int]) -> Iterator[str]:
    yield from _head("layer", "", *METRICS)
    for layer in layers:
        train = read_json(folder / "train" / f"{layer}.json")
        yield _row(layer, "SAE", *(_short(train["test"].get(name)) for name in METRICS))
        for name, twin in read_json(folder / "controls" / f"{layer}.json")["twins"].items():
            yield _row(layer, NAMES[name], *(_short(twin["test"].get(metric)) for metric in METRICS))


def _tasks(folder: Path, layer: int) -> Iterator[str]:
    tasks = read_json(folder / "evaluate" / f"{layer}.json")["tasks"]
    for pooling, summary in tasks["normal"].items():
        ks = list(summary["sae"]["auc"])
        yield f"\n**Layer {layer}, {POOLINGS[pooling]}**: AUC, mean over {tasks['tasks']} tasks\n"
        yield from _head("", *(f"k = {k}" for k in ks))
        shown = {name: summary[name] for name in ("seeds", "sae") if name in summary} | summary["controls"]
        for name in (name for name in NAMES if name in shown):
            yield _row(NAMES[name], *(f"{shown[name]['auc'][k]['value']:.3f}" for k in ks))
        yield "\nThe SAE's mean over seeds is above (95 % over tasks and seeds):\n"
        yield from _head("", *(f"k = {k}" for k in ks))
        for name in (name for name in NAMES if name in summary["above"] and name != "shuffled"):
            yield _row(NAMES[name], *(_interval(summary["above"][name][k]) for k in ks))


def _stability(folder: Path, layers: Sequence[int]) -> Iterator[str]:
    yield from _head("layer", "by", "come again", "controls", "in all other seeds … in none")
    for layer in layers:
        found = read_json(folder / "stability" / f"{layer}.json")
        times = ", ".join(map(str, reversed(found["times"])))
        for what, name in (("direction", "again"), ("firing", "again_cofiring")):
            controls = [f"{kind} {_interval(of[name])}" for kind, of in found["controls"].items() if name in of]
            yield _row(layer, what, _interval(found[name]), "; ".join(controls), times if what == "direction" else "")


def _rules(folder: Path, layers: Sequence[int]) -> Iterator[str]:
    yield from _head("layer", "", "balanced accuracy of token rules", "SAE above it by")
    for layer in layers:
        rules = read_json(folder / "evaluate" / f"{layer}.json")["rules"]
        yield _row(layer, "SAE", _interval(rules["sae"]), "")
        yield _row(layer, "rules of other latents", _interval(rules["chance"]), "")
        for name, measure in rules["controls"].items():
            yield _row(layer, NAMES.get(name, name), _interval(measure), _interval(rules["above"][name]))


def _steering(folder: Path, layers: Sequence[int]) -> Iterator[str]:
    for layer in layers:
        found = read_json(folder / "steer_eval" / f"{layer}.json")
        if found.get("skipped"):
            continue
        judged = [one["promoted"] for one in found["latents"] if one["promoted"]]
        yield f"Layer {layer}, {len(judged)} latents, best effect in nats at {found['kl']} nats of KL:\n"
        yield from _head("steered with", "mean effect", "latents that beat it", "SAE ahead by")
        for name in judged[0]["best"]:
            effects = [of["best"][name]["effect"] for of in judged if of["best"][name]]
            beats = sum(of["against"][name]["beats"] for of in judged) if name in judged[0]["against"] else ""
            yield _row(name, f"{fmean(effects):.2f}", beats, "")
        for name, twin in found["twins"].items():
            yield _row(NAMES[name], f"{twin['effect']:.2f}", "", _interval({"value": twin["difference"], **twin}, 2))


if __name__ == "__main__":
    run(main)
