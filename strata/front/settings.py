"""The knobs of params.yaml as values in memory, and changes of some of them."""

from collections.abc import Mapping
from typing import Any

from strata import auto, defaults
from strata.corpus.knobs import Fetch
from strata.extraction.knobs import Extract
from strata.families.knobs import Cluster
from strata.interpretation.explain_knobs import Explain
from strata.interpretation.knobs import Interpret
from strata.inversion.knobs import Invert
from strata.merging.knobs import Merge
from strata.run import door, params
from strata.training.knobs import Train

KINDS = {
    "fetch": Fetch,
    "extract": Extract,
    "train": Train,
    "interpret": Interpret,
    "explain": Explain,
    "cluster": Cluster,
    "merge": Merge,
    "invert": Invert,
}


def knobs(section: str, *changes: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a section of params.yaml, with ``changes`` over them, one after the other, key by key.

    ``section``: fetch, extract, train, interpret, explain, cluster, merge or invert. What a nested change does not name
    stays as it is. Nothing that is given is changed. Raises BadInput for a knob or value that there is not.

    The call of the section takes the result by name: extract's :func:`strata.activations`, interpret's
    :func:`strata.latents`, and the others' those of the same name. They take a part of the knobs, too.

    >>> mine = strata.knobs("cluster", {"clusters": 50, "map": {"spread": 0.5}})          # doctest: +SKIP
    >>> families = strata.cluster(latents, **mine)                                        # doctest: +SKIP
    """
    door.choice("section", section, KINDS)
    merged = defaults.section(section)
    for change in changes:
        door.of_kind("changes", change, Mapping, "it must be a dict of knobs, such as {'k': 32}")
        merged = defaults.changed(merged, change)

    # What is `auto` follows from the rows, which the call will see; any number of them tells whether the rest is right.
    settled = auto.train(merged, auto.MANY_TOKENS) if section == "train" else merged
    params.check(settled, KINDS[section], section)
    return merged
