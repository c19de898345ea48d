"""Lay numbers and pictures out as one self-contained file of HTML."""

import base64
import json
from collections.abc import Mapping
from typing import NamedTuple

from stages.report import stability
from stages.report.causes import SHOWN, written
from stages.report.closeup import closeup
from stages.report.evaluated import NAMES, costly, probed, task_tables
from stages.report.figures import headline
from stages.report.findings import Findings
from stages.report.glossary import GLOSSARY
from stages.report.latents import tokens
from stages.report.losses import losses
from stages.report.scorecard import Scorecard, failures, worded
from stages.report.templates import environment
from strata.pages.readable import number
from strata.verdict.targets import WORSE

SCALE = 0.35  # CSS pixels a pixel of a picture, so that letters are as large in each
CAPTIONS = {
    "fvu": "Variance that the reconstruction misses.",
    "l0": "Latents active on one token.",
    "dead": "Latents that have not fired for a while.",
    "density": "How often the latents fire. Dead latents, which never do, are not shown.",
    "controls": "The SAE beside three stand-ins that a useful target must reject; shorter is better, "
    "the dashed line is the target.",
    "stability": "How near each latent's nearest latent in another training is; the grey line is where it comes again.",
}
MERGED = ("latents", "fvu", "fvu_inlier", "l0", "dead", "delta_ce")


def render(findings: Findings, card: Scorecard, pictures: Mapping[str, bytes]) -> str:
    """Return the page. ``card``: the scorecard of ``findings``. ``pictures``: name -> PNG."""
    templates = environment()
    templates.filters |= {"bound": bound, "value": value, "score": score}
    of_tune = findings.searched.pictures if findings.searched else {}
    notes = [note for layer in findings.latents for latent in layer.ids[:5] if (note := layer.notes.get(latent))]

    return templates.get_template("page.html.j2").render(
        report=findings.knobs,
        text=findings.corpus,
        glossary=GLOSSARY,
        pictures={name: embedded(png) for name, png in {**pictures, **of_tune}.items()},
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
        measured={
            name
            for result in findings.results
            for name, measure in findings.tested(result).items()
            if measure is not None
        },
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
        scored_on=min((note["items"] for note in notes if note["balanced_accuracy"] is not None), default=0),
        explained=findings.measured["explain"],
        closeups=[both_ends for layer in findings.latents if (both_ends := closeup(layer))],
        families=list(findings.families.values()),
        maps={layer: base64.b64encode(families.picture).decode() for layer, families in findings.families.items()},
        # merge
        merged=findings.merged,
        merge_metrics=MERGED,
        # steer_eval and invert
        causes=findings.causes,
        steered=[layer for layer, steering in findings.causes.steered.items() if steering["latents"]],
        inverted=[layer for layer, inversion in findings.causes.inverted.items() if inversion["latents"]],
        written=written,
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


class Embedded(NamedTuple):
    """A picture as the page holds it; its size in CSS pixels."""

    base64: str
    width: int
    height: int


def embedded(png: bytes) -> Embedded:
    """Return a PNG with the size at which its letters are as large as those of the others."""
    width, height = (round(SCALE * int.from_bytes(png[at : at + 4])) for at in (16, 20))  # of the header IHDR
    return Embedded(base64.b64encode(png).decode(), width, height)


def score(share: float | None) -> str:
    """Write a number whose scale is 0 to 1 with three decimals, so that a column has one rounding."""
    return "–" if share is None else f"{share:.3f}".replace("-0.000", "0.000").replace("-", "−")


def value(knob: float | int | str | bool | None) -> str:
    """Write a knob for a person: a fraction with few digits, anything else as params.yaml would have it."""
    if isinstance(knob, float):
        return number(knob)
    return knob if isinstance(knob, str) else json.dumps(knob)


def bound(line: Mapping[str, float | None]) -> str:
    """Write the target of a scorecard's line."""
    return worded(line["min"], line["max"])
