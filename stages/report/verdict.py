"""The one line that says first how a run did: its targets, and how far its SAEs are from the nearest twin."""

from collections.abc import Mapping

from strata.twins.read import Twins

HEADLINES = ("fvu_inlier", "fvu")  # the metric of the line: the first one that was measured


def verdict(passed: int, failed: int, twins: Mapping[int, Twins]) -> str:
    """Write ``18 of 18 targets; fvu_inlier of layer 9: 0.03 ± 0.01 better than frozen_decoder``.

    The twin is the one that comes closest to its SAE over all layers. ± is half of the 95 % interval. If the interval
    reaches 0, the line says "not better than".
    """
    line = f"{passed} of {passed + failed} targets"
    margins = [
        (twin.margin[metric], layer, name, metric)
        for layer, found in twins.items()
        for name, twin in found.twins.items()
        for metric in [next((metric for metric in HEADLINES if metric in twin.margin), None)]
        if metric is not None
    ]
    if not margins:
        return line

    margin, layer, name, metric = min(margins, key=lambda entry: entry[0].value)
    half = (margin.high - margin.low) / 2
    if margin.low > 0:
        judgement = f"{margin.value:.2g} ± {half:.1g} better than {name}"
    else:
        judgement = f"not better than {name} ({margin.value:.2g} ± {half:.1g})"
    return f"{line}; {metric} of layer {layer}: {judgement}"
