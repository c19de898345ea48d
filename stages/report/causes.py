"""What steer_eval and invert measured, as the report and the latents' pages show it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from strata.pages.pictures import INK, SOFT, png

Numbers = dict[str, Any]
SHOWN = 4  # latents of a layer whose curves and texts are in the report; all are in the files
COLOURS = {"latent": "#b4436c", "DiffMean": "#3d7ea6", "random latent": "#8a9a3b", "random direction": SOFT}


class Causes(NamedTuple):
    """Layer -> what `reports/steer_eval/<L>.json` and `reports/invert/<L>.json` say; a skipped layer is in neither."""

    steered: Mapping[int, Numbers]
    inverted: Mapping[int, Numbers]

    def of(self, layer: int, latent: int) -> dict[str, Numbers | None]:
        """What is known of one latent: ``steered`` and ``inverted``."""
        named = {"steered": self.steered, "inverted": self.inverted}
        return {name: _latent(found.get(layer), latent) for name, found in named.items()}

    def pictures(self) -> dict[str, bytes]:
        """Dose-response curves, `steering-<L>.png`."""
        return {f"steering-{layer}": doses(found) for layer, found in self.steered.items() if found["latents"]}

    def latents(self, layer: int) -> list[int]:
        """Those of which something is known, to get a page each."""
        there = [found[layer] for found in (self.steered, self.inverted) if layer in found]
        return [row["latent"] for found in there for row in found["latents"]]


def _latent(found: Numbers | None, latent: int) -> Numbers | None:
    return next((row for row in found["latents"] if row["latent"] == latent), None) if found else None


def doses(found: Numbers) -> bytes:
    """For each latent: by strength, how much likelier its promoted tokens become, beside the baselines. A dot costs no
    more KL than the bound."""
    rows = found["latents"][:SHOWN]

    def draw(*panels: Axes) -> None:
        for axes, row in zip(panels, rows, strict=True):
            for name, points in row["doses"].items():
                x, y = ([point[key] for point in points] for key in ("strength", "promoted"))
                colour = COLOURS.get(name, INK)
                axes.plot(x, y, color=colour, lw=1.6 if name == "latent" else 1.0, label=name)
                cheap = [point for point in points if point["kl"] <= found["kl"]]
                x, y = ([point[key] for point in cheap] for key in ("strength", "promoted"))
                axes.plot(x, y, color=colour, ls="", marker="o", ms=4)
            axes.axhline(0, color=INK, lw=0.5)
            axes.set_title(f"latent {row['latent']}", fontsize=9)
            axes.set_xlabel("strength")
        panels[0].set_ylabel("Δ log p of its promoted tokens")
        panels[0].legend()

    return png(draw, size=(2.9 * len(rows) + 0.6, 2.9), panels=len(rows), axes_grid=True)
