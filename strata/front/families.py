"""Families of latents, and the smaller dictionary that they make."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from strata import defaults
from strata.corpus import read as corpus
from strata.families import cluster as grouping
from strata.families.knobs import Cluster
from strata.families.read import Clusters, open_clusters
from strata.front.activations import LayerActivations, home_of
from strata.front.files import sae_of
from strata.front.latents import Latents
from strata.merging import merge as merging
from strata.merging.knobs import Merge
from strata.notebook import Vectors
from strata.run import door
from strata.sae.sae import SAE

SELECTION = {"clusters": "top_n", "top_n": 8}


@dataclass(frozen=True)
class Families:
    """``table``: a line a family, the largest first: its name, size, medoid and how well it holds together.

    ``of``: (latent) -> the family of each latent; -1 where a latent belongs nowhere, -2 where it is dead.
    """

    latents: Latents = field(repr=False)
    opened: Clusters = field(repr=False)
    table: pd.DataFrame
    report: dict[str, Any] = field(repr=False)
    _home: Any = field(repr=False, default=None)

    @property
    def of(self) -> pd.Series:
        return pd.Series(self.opened.labels, name="family").rename_axis("latent")

    def members(self, family: int) -> list[int]:
        """The latents of a family."""
        door.whole("family", family, 0, len(self.table) - 1)
        return self.of.index[self.of == family].tolist()

    @property
    def map(self) -> Path:
        """A page that draws the latents, near ones near each other."""
        return self.opened.folder / "map.html"


@dataclass(frozen=True)
class Merged:
    """A smaller dictionary. ``quality``: a line each for it, the SAE before, and two ways to drop latents instead.

    ``groups``: which latents of the old dictionary make which of the new.
    """

    sae: SAE = field(repr=False)
    quality: pd.DataFrame
    groups: pd.DataFrame = field(repr=False)
    report: dict[str, Any] = field(repr=False)


def cluster(found: Latents, seed: int = 0, folder: str | Path | None = None, **knobs: Any) -> Families:
    """Group latents that write, and fire, alike.

    ``knobs``: others of the section cluster of params.yaml, such as ``method="hdbscan"``, ``clusters=50`` or
    ``weights={"jaccard": 1.0}``.

    >>> families = strata.cluster(latents)                                                # doctest: +SKIP
    >>> families.table[["cluster", "name", "size"]].head()                                # doctest: +SKIP
    """
    door.of_kind("latents", found, Latents, "it must be what strata.latents gives")
    settings = defaults.knobs("cluster", Cluster, knobs)
    home, target = home_of(folder)
    texts = corpus.titles(found.rows.corpus)
    source = grouping.source(found.opened, found.sae.decoder.cpu(), found.rows.contexts, *texts)
    report = grouping.cluster(source, settings, seed, target)
    opened = open_clusters(target)
    return Families(found, opened, opened.table("clusters").to_pandas(), report, home)


def merge(
    sae: Any,
    rows: "LayerActivations | Vectors",
    families: Families,
    device: str = "cpu",
    **knobs: Any,
) -> Merged:
    """Merge latents into a smaller dictionary, refit its decoder, and judge it on test rows beside dropping latents.

    ``rows``: those that the latents of ``families`` were looked at on. ``knobs``: others of the section
    merge of params.yaml, such as ``latents=0.25`` or ``encoder="mean"``, which gives an SAE that SAELens can load.

    >>> smaller = strata.merge(sae, acts[6], families)                                    # doctest: +SKIP
    """
    door.of_kind("families", families, Families, "it must be what strata.cluster gives")
    on = rows if isinstance(rows, LayerActivations) else families.latents.rows  # vectors were stored for the latents
    settings = defaults.knobs("merge", Merge, knobs)
    source = merging.Source(on.activations, on.contexts, families.latents.opened, families.opened)
    model, where = sae_of(sae), door.device(device)
    merging.check(model, source)
    lm = on.lm
    made = merging.merge(model.to(where), source, settings, (lambda: lm) if lm and settings.ce_tokens else None, where)
    lines = [{"what": name, **values} for name, values in made.report["test"].items()]
    return Merged(made.sae, pd.DataFrame(lines), pd.DataFrame(made.groups.table()), made.report)
