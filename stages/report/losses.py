"""Where a control is ahead of the SAE, or not shown to be behind: the report says it beside its targets."""

from collections.abc import Iterator, Mapping
from typing import Any

from stages.report.evaluated import NAMES, probed, task_tables
from stages.report.findings import Findings
from strata.pages.readable import number

Numbers = Mapping[str, Any]
WORDED = ("lm", "endpoint")  # sources of explanations in words
CHANCE = ("shuffled", "drawn")  # controls that tell of the method, and not of other dictionaries


def losses(findings: Findings) -> list[str]:
    """Say in one sentence each where a control does better than the SAE, or is not shown to do worse."""
    found = [
        *(line for layer, numbers in findings.evaluated.items() for line in _evaluated(layer, numbers)),
        *(line for layer, numbers in findings.measured["explain"].items() for line in _explained(layer, numbers)),
        *(line for layer, numbers in findings.causes.steered.items() for line in _steered(layer, numbers)),
    ]
    for merged in findings.merged:
        after, refitted = merged.test["after"]["fvu"], merged.test["refitted"]["fvu"]
        if after is not None and refitted is not None and after >= refitted:
            found.append(
                f"layer {merged.layer}: merging latents reconstructs no better than dropping as many and refitting the "
                f"decoder ({number(after)} against {number(refitted)} of fvu)"
            )
    return found


def _evaluated(layer: int, numbers: Numbers) -> Iterator[str]:
    """Say where probes, tasks and token rules do as well without the SAE's latents."""
    yield from _probes(f"layer {layer}: probes of labels", probed(dict(numbers)))

    tables = dict(task_tables(dict(numbers)))
    for title, rows in tables.items():
        yield from _probes(f"layer {layer}: tasks that others made ({title})", rows)

    rules = numbers.get("rules", {})
    same = [name for name, above in rules.get("above", {}).items() if above["low"] is not None and above["low"] <= 0]
    if same:
        yield (
            f"layer {layer}: token rules name the latents of {_listed(same)} as well as the SAE's, as far as "
            f"{rules['latents']} latents show"
        )


def _probes(what: str, rows: Mapping[str, Numbers]) -> Iterator[str]:
    """Name the controls that are ahead of the SAE, each with the numbers of latents at which it is."""
    own = rows.get("sae", {})
    ahead = {
        name: [k for k, measure in row.items() if k in own and measure["value"] > own[k]["value"]]
        for name, row in rows.items()
        if name not in ("sae", "seeds", *CHANCE)
    }
    said = [f"{NAMES.get(name, name)} (k = {', '.join(ks)})" for name, ks in ahead.items() if ks]
    if said:
        yield f"{what}: ahead of the SAE {'is' if len(said) == 1 else 'are'} {'; '.join(said)}"


def _explained(layer: int, numbers: Numbers) -> Iterator[str]:
    """Say where explanations in words are not shown to beat chance."""
    for source in WORDED:
        score = numbers.get(source, {}).get("balanced_accuracy", {})
        if score.get("low") is not None and score["low"] <= 0:
            yield (
                f"layer {layer}: explanations in words are not shown to beat chance ({number(score['mean'])} against "
                f"{number(score['chance'])}, {score['latents']} latents)"
            )


def _steered(layer: int, numbers: Numbers) -> Iterator[str]:
    """Say how many steered latents beat no baseline, and which twins steer as far."""
    latents = numbers.get("latents", [])
    if latents and numbers["beating_all"] < 0.5:
        beating = round(numbers["beating_all"] * len(latents))
        verb = "beats" if beating == 1 else "beat"
        yield f"layer {layer}: {beating or 'none'} of {len(latents)} steered latents {verb} all baselines"
    same = [name for name, twin in numbers.get("twins", {}).items() if twin["latents"] and twin["low"] <= 0]
    if same:
        yield f"layer {layer}: {_listed(same)} steers as far as the SAE, as far as {len(latents)} latents show"


def _listed(names: list[str]) -> str:
    """Write ``the twin “frozen decoder” and random directions``."""
    said = ["random directions" if name == "untrained" else f"the twin “{NAMES.get(name, name)}”" for name in names]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
