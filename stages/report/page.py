"""Lay numbers and pictures out as one self-contained file of HTML."""

import base64
import json
from collections.abc import Mapping

from stages.report import stability
from stages.report.causes import SHOWN
from stages.report.closeup import closeup
from stages.report.evaluated import NAMES, costly, probed, task_tables
from stages.report.figures import headline
from stages.report.findings import Findings
from stages.report.glossary import GLOSSARY
from stages.report.latents import tokens
from stages.report.losses import losses
from stages.report.scorecard import Scorecard, failures
from stages.report.templates import environment
from strata.pages.readable import number
from strata.verdict.targets import WORSE

CAPTIONS = {
    "fvu": "Variance that the reconstruction misses while training; the targets judge the test split afterwards.",
    "l0": "Latents active on one token; the green band is the target.",
    "dead": "Latents that have not fired for a while; the green band is the target.",
    "density": "How often the latents fire. Dead latents, which never do, are not shown.",
    "controls": "The SAE beside three stand-ins that a useful target must reject; shorter is better, "
    "the dashed line is the target.",
    "merge": "Variance missed by smaller dictionaries: latents merged and the decoder refitted; weak ones "
    "dropped, with that refit or without. A dot is the dictionary that was trained.",
    "stability": "How near each latent's nearest latent in another training is; the grey line is where it comes again.",
    "probing": "Accuracy of probes by how much they may look at; bars span the splits, the grey line is chance.",
}
MERGED = ("latents", "fvu", "fvu_inlier", "l0", "dead", "delta_ce")


def render(findings: Findings, card: Scorecard, pictures: Mapping[str, bytes]) -> str:
    """Return the page. ``card``: the scorecard of ``findings``. ``pictures``: name -> PNG."""
    templates = environment()
    templates.filters |= {"bound": bound, "value": value}
    embedded = {name: _base64(png) for name, png in pictures.items()}

    return templates.get_template("page.html.j2").render(
        report=findings.knobs,
        text=findings.corpus,
        glossary=GLOSSARY,
        pictures=embedded,
        captions=CAPTIONS,
        skipped=findings.skipped,
        # the verdict
        card=card,
        judged=[line["metric"] for line in card["targets"] if line["layer"] == findings.results[0].layer],
        lines={
            (line["layer"], line.get("control") or line.get("twin"), line["metric"]): line
            for line in card["targets"] + card["controls"] + card["twins"]
        },
        loose=[control for control in card["controls_failing"] if not control["fails"]],
        failures=failures(card),
        worse=findings.shortfalls,
        losses=losses(findings),
        # tune and train
        searched=findings.searched,
        results=findings.results,
        tested=findings.tested,
        controls=list(findings.results[0].controls),
        twins=findings.twins,
        twin_names=list(dict.fromkeys(name for found in findings.twins.values() for name in found.twins)),
        called=NAMES,
        of_layer=lambda layer: findings.twins[layer].twins if layer in findings.twins else {},
        columns=1 + len(findings.results) + sum(len(found.twins) for found in findings.twins.values()),
        margins={(line["layer"], line["twin"], line["metric"]): line for line in card["margins"]},
        margin_metrics=[
            metric
            for metric in WORSE
            if any(metric in twin.margin for found in findings.twins.values() for twin in found.twins.values())
        ],
        headline=headline(findings.results),
        # interpret, explain and cluster
        latents=findings.latents,
        explained=findings.measured["explain"],
        closeups=[both_ends for layer in findings.latents if (both_ends := closeup(layer))],
        families=list(findings.families.values()),
        maps={layer: _base64(families.picture) for layer, families in findings.families.items()},
        # merge
        merged=findings.merged,
        merge_metrics=MERGED,
        # steer_eval and invert
        causes=findings.causes,
        doses={
            layer: embedded[f"steering-{layer}"]
            for layer, steering in findings.causes.steered.items()
            if steering["latents"]
        },
        searches={
            layer: embedded[f"inversion-{layer}"]
            for layer, inversion in findings.causes.inverted.items()
            if inversion["latents"]
        },
        shown=SHOWN,
        marked=lambda row: tokens(row["pieces"], row["values"], row["activation"]),
        # stability
        stability=findings.measured["stability"],
        stability_controls=stability.CONTROLS,
        pooled_metrics=stability.POOLED,
        dictionaries=stability.DICTIONARIES,
        # evaluate
        evaluated=findings.evaluated,
        probed=probed,
        task_tables=task_tables,
        costly=costly,
        probe_names=NAMES,
    )


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()


def value(knob: float | int | str | bool | None) -> str:
    """Write a knob for a person: a fraction with few digits, anything else as params.yaml would have it."""
    if isinstance(knob, float):
        return number(knob)
    return knob if isinstance(knob, str) else json.dumps(knob)


def bound(line: Mapping[str, float | None]) -> str:
    """Write ``min`` and ``max`` of a scorecard's line as a condition: ``≤ 0.01``, ``50 – 100``."""
    low, high = line["min"], line["max"]
    if low is None:
        return f"≤ {high:g}"
    return f"≥ {low:g}" if high is None else f"{low:g} – {high:g}"
