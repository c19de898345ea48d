"""Show what later stages measured of latents, in the report and on the latents' pages."""

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from matplotlib.axes import Axes

from strata.inversion.pictures import curves
from strata.pages.pictures import INK, KINDS, SOFT, label_ends, png

Numbers = dict[str, Any]
SHOWN = 4  # latents of a layer whose curves and texts the report shows; the stages' files hold all of them
COLOURS = dict(zip(("latent", "DiffMean", "random latent", "random direction"), KINDS, strict=True))
NAMES = {"latent": "the latent"}  # condition -> how a picture calls it, if not by its name


class Causes(NamedTuple):
    """What the reports of steer_eval, invert and evaluate say, by layer. A skipped layer has no entry."""

    steered: Mapping[int, Numbers]
    inverted: Mapping[int, Numbers]
    evaluated: Mapping[int, Numbers]

    def of(self, layer: int, latent: int) -> dict[str, Numbers | None]:
        """Return what is known of one latent, as ``steered`` and ``inverted``; None where nothing is.

        Beside it stands what many latents of the layer and of its twins reach: ``steered_beside`` and ``rules_beside``.
        """
        steered = self.steered.get(layer)
        rules = self.evaluated.get(layer, {}).get("rules", {})
        return {
            "steered": _latent(steered, latent),
            "steered_beside": {
                name: twin for name, twin in (steered or {}).get("twins", {}).items() if twin["latents"]
            },
            "inverted": _latent(self.inverted.get(layer), latent),
            "rules_beside": rules if "sae" in rules else None,
        }

    def pictures(self) -> dict[str, bytes]:
        """Draw a latent's responses to steering, `steering-<L>-<latent>`, and a layer's searches, `inversion-<L>`."""
        inverted = {layer: numbers["latents"] for layer, numbers in self.inverted.items() if numbers["latents"]}
        return {
            **{
                f"steering-{layer}-{latent['latent']}": doses(latent, numbers["kl"])
                for layer, numbers in self.steered.items()
                for latent in numbers["latents"][:SHOWN]
            },
            **{f"inversion-{layer}": curves(rows) for layer, rows in inverted.items()},
        }

    def latents(self, layer: int) -> list[int]:
        """Return the latents of a layer that were steered or inverted: each of them gets a page."""
        measured = [numbers[layer] for numbers in (self.steered, self.inverted) if layer in numbers]
        return [row["latent"] for numbers in measured for row in numbers["latents"]]


def _latent(numbers: Numbers | None, latent: int) -> Numbers | None:
    """Return a latent's row of a layer's numbers; None if it has none."""
    if numbers is None:
        return None
    return next((row for row in numbers["latents"] if row["latent"] == latent), None)


def doses(latent: Numbers, most: float) -> bytes:
    """Draw how much likelier a latent's promoted tokens become with the strength, beside the baselines.

    ``latent``: what steer_eval measured of it. A dot marks a strength that costs at most ``most`` nats of KL.
    """

    def draw(axes: Axes) -> None:
        ends = []
        for name, points in latent["doses"].items():
            colour = COLOURS.get(name, INK)
            strengths, effects = _curve(points)
            axes.plot(strengths, effects, color=colour, lw=1.8 if name == "latent" else 1.1)
            ends.append((effects[-1], NAMES.get(name, name), colour))

            strengths, effects = _curve([point for point in points if point["kl"] <= most])
            axes.plot(strengths, effects, color=colour, ls="", marker="o", ms=4)

        axes.axhline(0, color=SOFT, lw=0.8)
        axes.set(title=f"latent {latent['latent']}", xlabel="strength", ylabel="nats that its tokens gain")
        label_ends(axes, ends)

    return png(draw, axes_grid=True)


def _curve(points: list[Numbers]) -> tuple[list[float], list[float]]:
    """Return the strengths, and by how many nats the promoted tokens become likelier."""
    return [point["strength"] for point in points], [point["promoted"] for point in points]


# --- what the model writes ----------------------------------------------------------------------------------------


class Steered(NamedTuple):
    """A text that the model wrote under steering. ``line``: what steer_eval measured of it. ``text``: with the words
    marked in which it differs from the text without steering."""

    line: Numbers
    text: Markup


class Prompt(NamedTuple):
    """A prompt, what follows it without steering, and what follows it under steering: by the latent, by baselines."""

    prompt: str
    plain: Numbers
    latent: list[Steered]
    baselines: list[Steered]


def written(latent: Numbers) -> list[Prompt]:
    """Put each text that was steered by a latent, or a baseline, under the text of its prompt without steering."""
    prompts = []
    for plain in latent["written"]:
        if plain["condition"] != "none":
            continue
        steered = [
            Steered(line, differing(plain["text"], line["text"]))
            for line in latent["written"]
            if line["prompt"] == plain["prompt"] and line["condition"] != "none"
        ]
        own, others = ([text for text in steered if (text.line["condition"] == "latent") is by] for by in (True, False))
        prompts.append(Prompt(plain["prompt"], plain, own, others))
    return prompts


def differing(plain: str, text: str) -> Markup:
    """Mark the words of ``text`` that are not in ``plain``, or not in that order."""
    before, words = (re.findall(r"\s*\S+|\s+$", whole) for whole in (plain, text))
    parts = []
    for kind, _, _, start, end in SequenceMatcher(None, before, words, autojunk=False).get_opcodes():
        run = "".join(words[start:end])
        bare = run.lstrip()
        parts.append(escape(run) if kind == "equal" or not bare else
                     Markup("{}<mark>{}</mark>").format(run[: len(run) - len(bare)], bare))  # fmt: skip
    return Markup("").join(parts)
