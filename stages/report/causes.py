"""Show what later stages measured of latents, in the report and on the latents' pages."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from strata.inversion.pictures import curves
from strata.pages.pictures import INK, SOFT, png

Numbers = dict[str, Any]
SHOWN = 4  # latents of a layer whose curves and texts the report shows; the stages' files hold all of them
COLOURS = {"latent": "#b4436c", "DiffMean": "#3d7ea6", "random latent": "#8a9a3b", "random direction": SOFT}


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
        """Draw each layer's dose-response curves, `steering-<L>.png`, and searches for prompts, `inversion-<L>.png`."""
        steered = {layer: numbers["latents"] for layer, numbers in self.steered.items() if numbers["latents"]}
        inverted = {layer: numbers["latents"] for layer, numbers in self.inverted.items() if numbers["latents"]}
        return {
            **{f"steering-{layer}": doses(self.steered[layer]) for layer in steered},
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


def doses(steering: Numbers) -> bytes:
    """Draw, for each latent, how much likelier its promoted tokens become with the strength, beside the baselines.

    ``steering``: what steer_eval measured of a layer. A dot marks a strength that costs no more KL than the bound.
    """
    rows = steering["latents"][:SHOWN]

    def draw(*panels: Axes) -> None:
        for axes, row in zip(panels, rows, strict=True):
            for name, points in row["doses"].items():
                colour = COLOURS.get(name, INK)
                strengths, effects = _curve(points)
                axes.plot(strengths, effects, color=colour, lw=1.6 if name == "latent" else 1.0, label=name)

                strengths, effects = _curve([point for point in points if point["kl"] <= steering["kl"]])
                axes.plot(strengths, effects, color=colour, ls="", marker="o", ms=4)
            axes.axhline(0, color=INK, lw=0.5)
            axes.set_title(f"latent {row['latent']}", fontsize=9)
            axes.set_xlabel("strength")

        panels[0].set_ylabel("Δ log p of its promoted tokens")
        panels[0].legend()

    return png(draw, size=(2.9 * len(rows) + 0.6, 2.9), panels=len(rows), axes_grid=True)


def _curve(points: list[Numbers]) -> tuple[list[float], list[float]]:
    """Return the strengths, and by how many nats the promoted tokens become likelier."""
    return [point["strength"] for point in points], [point["promoted"] for point in points]
