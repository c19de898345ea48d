"""Draw how often a latent takes a value, as SVG."""

from collections.abc import Sequence
from math import floor, log10

from markupsafe import Markup

from strata.pages.readable import number

WIDTH, HEIGHT = 368.0, 150.0  # of the picture, in SVG's units, which are pixels in the column that it stands in
LEFT, RIGHT, TOP, FOOT = 44.0, 8.0, 18.0, 34.0  # room around the bars, for the labels
TICKS = 5  # at the most, on the axis of values


def histogram(
    counts: Sequence[int], edges: Sequence[float], mean: float, largest: float, unit: str = "token"
) -> Markup:
    """Draw how often the latent takes a value: bars over a logarithmic axis, the mean as a dashed line.

    ``counts``: (bins,) how many rows have a value in the bin. ``edges``: (bins + 1,) the values between the bins.
    ``largest``: the latent's largest activation, at which the picture ends. Empty bins at either end are left out; the
    picture of a dead latent is empty.
    """
    filled = [place for place, count in enumerate(counts) if count]
    if not filled or largest <= 0:
        return Markup("")
    first, end = filled[0], filled[-1] + 1
    counts, edges = counts[first:end], [*edges[first:end], largest]
    if edges[0] <= 0:  # the lowest bin holds everything down to 0, which a logarithmic axis cannot show
        edges[0] = edges[1] / 2**0.5
    low, span = log10(edges[0]), max(log10(edges[-1]) - log10(edges[0]), 1e-9)

    def x(value: float) -> float:
        share = (log10(max(value, edges[0])) - low) / span
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(share, 0.0), 1.0)

    ground, tallest = HEIGHT - FOOT, max(counts)
    bars = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        height = (ground - TOP) * count / tallest
        if count:
            bars.append(
                f'<rect x="{x(left) + 0.5:.1f}" y="{ground - height:.1f}" '
                f'width="{max(x(right) - x(left) - 1, 0.6):.1f}" height="{height:.1f}">'
                f"<title>{number(left)} – {number(right)}: {number(count)} {unit}s</title></rect>"
            )

    # Numbers on both axes: round values below, the tallest bar and its half at the left.
    axes = [f'<line x1="{LEFT}" y1="{ground}" x2="{WIDTH - RIGHT}" y2="{ground}"/>']
    for value in ticks(edges[0], edges[-1]):
        axes.append(f'<line x1="{x(value):.1f}" y1="{ground}" x2="{x(value):.1f}" y2="{ground + 4}"/>')
        axes.append(f'<text x="{x(value):.1f}" y="{ground + 15}" text-anchor="middle">{number(value)}</text>')
    for value in dict.fromkeys((0, tallest // 2, tallest)):
        height = ground - (ground - TOP) * value / tallest
        axes.append(f'<text x="{LEFT - 5}" y="{height + 4:.1f}" text-anchor="end">{number(value)}</text>')
    axes.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">activation</text>')
    axes.append(f'<text x="0" y="10">{unit}s</text>')

    # The mean's label stands on the side of the line that has room.
    anchor, shift = ("end", -4) if x(mean) > WIDTH * 0.6 else ("start", 4)
    label = (
        f"Histogram of its activations up to {number(largest)}, mean {number(mean)}, at most {number(tallest)} a bar"
    )
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{label}">'
        f"{''.join(bars)}{''.join(axes)}"
        f'<line class="mean" x1="{x(mean):.1f}" y1="{TOP - 8}" x2="{x(mean):.1f}" y2="{ground}"/>'
        f'<text x="{x(mean) + shift:.1f}" y="{TOP - 6}" text-anchor="{anchor}">mean {number(mean)}</text></svg>'
    )


def ticks(low: float, high: float) -> list[float]:
    """Return up to TICKS round values from ``low`` to ``high``, as many as can be; ``high`` where none is round."""
    powers = range(floor(log10(low)), floor(log10(high)) + 1)
    for digits in (range(10, 100, 5), (10, 15, 20, 30, 50, 70), (10, 20, 50), (10, 30), (10,)):
        values = [float(f"{digit * 10.0 ** (power - 1):.6g}") for power in powers for digit in digits]
        inside = [value for value in values if low <= value <= high]
        if len(inside) <= TICKS:
            return inside or [high]
    powers_of_ten = [10.0**power for power in powers if low <= 10.0**power <= high]
    return powers_of_ten[:: -(-len(powers_of_ten) // TICKS)]
