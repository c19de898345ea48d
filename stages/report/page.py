"""Lay numbers and pictures out as one self-contained file of HTML."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from stages.report.causes import SHOWN, Causes
from stages.report.closeup import closeup
from stages.report.evaluated import NAMES, costly, probed
from stages.report.families import Families
from stages.report.figures import headline
from stages.report.glossary import GLOSSARY
from stages.report.knobs import Report
from stages.report.latents import Layer, tokens
from stages.report.results import Merged, Result
from stages.report.scorecard import Scorecard, failures
from stages.report.templates import environment
from stages.report.tuned import Searched
from strata.pages.readable import number
from strata.verdict.targets import Targets

CAPTIONS = {
    "fvu": "Variance that the reconstruction misses while training; the targets judge the test split afterwards.",
    "l0": "Latents active on one token; the green band is the target.",
    "dead": "Latents that have not fired for a while; the green band is the target.",
    "density": "How often the latents fire. Dead latents, which never do, are not shown.",
    "controls": "The SAE beside three stand-ins that a useful target must reject; shorter is better, "
    "the dashed line is the target.",
    "merge": "Variance missed by smaller dictionaries: latents merged and the decoder refitted; weak ones "
    "dropped, with that refit or without. A dot is the dictionary that was trained.",
    "probing": "Accuracy of probes by how much they may look at; bars span the splits, the grey line is chance.",
}
MERGED = ("latents", "fvu", "fvu_inlier", "l0", "dead", "delta_ce")


def render(
    results: list[Result],
    card: Scorecard,
    pictures: Mapping[str, bytes],
    targets: Targets,
    text: str,
    report: Report,
    worse: Mapping[int, str],
    latents: list[Layer],
    families: list[Families],
    causes: Causes,
    merged: Sequence[Merged] = (),
    searched: Searched | None = None,
    evaluated: Mapping[int, dict[str, Any]] | None = None,
    skipped: Sequence[str] = (),
) -> str:
    """Return the page; ``text`` names the corpus, ``worse`` says by layer which SAEs are worse than the mean or PCA and
    what to try, ``latents`` are the layers that interpret looked at, ``families``
    those that were clustered, ``merged`` those that merge made smaller, ``causes`` is what steering and inversion
    found, ``searched`` what tune did, ``evaluated`` what evaluate measured, by layer; ``skipped`` names the stages that
    ran on no layer."""
    templates = environment()
    templates.filters |= {"bound": bound, "value": value}
    return templates.get_template("page.html.j2").render(
        report=report,
        results=results,
        controls=list(results[0].controls),
        card=card,
        judged=list(targets.bounds),
        lines={
            (line["layer"], line.get("control"), line["metric"]): line for line in card["targets"] + card["controls"]
        },
        loose=[control for control in card["controls_failing"] if not control["fails"]],
        failures=failures(card),
        worse=worse,
        headline=headline(results),
        pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
        captions=CAPTIONS,
        glossary=GLOSSARY,
        text=text,
        latents=latents,
        closeups=[found for layer in latents if (found := closeup(layer))],
        searched=searched,
        families=families,
        maps={found.layer: base64.b64encode(found.picture).decode() for found in families},
        causes=causes,
        doses={
            layer: base64.b64encode(pictures[f"steering-{layer}"]).decode()
            for layer, found in causes.steered.items()
            if found["latents"]
        },
        shown=SHOWN,
        marked=lambda row: tokens(row["pieces"], row["values"], row["activation"]),
        merged=merged,
        skipped=skipped,
        merge_metrics=MERGED,
        evaluated=evaluated or {},
        probed=probed,
        costly=costly,
        probe_names=NAMES,
    )


def value(knob: float | int | str | bool | None) -> str:
    """A knob as a person reads it: numbers short, the rest as params.yaml would have it."""
    return number(knob) if isinstance(knob, float) else knob if isinstance(knob, str) else json.dumps(knob)


def bound(line: Mapping[str, float | None]) -> str:
    """``min`` and ``max`` as a condition: ``≤ 0.01``, ``50 – 100``."""
    low, high = line["min"], line["max"]
    if low is None:
        return f"≤ {high:g}"
    return f"≥ {low:g}" if high is None else f"{low:g} – {high:g}"
