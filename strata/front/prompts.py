"""Prompts that a latent fires on, found by search and measured again as text."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from strata import defaults
from strata.front.files import sae_of
from strata.front.latents import Latents
from strata.interpretation.read import chosen
from strata.inversion import invert as work
from strata.inversion import write
from strata.inversion.knobs import Invert
from strata.lm.model import DTYPES, LanguageModel, mute
from strata.run import door
from strata.run.door import BadInput


@dataclass(frozen=True)
class Inverted:
    """Prompts that were searched for some latents; :mod:`strata.plots` draws them.

    ``table``: a line a prompt: its text, the activation measured on that text, and the method that gave it.
    ``summary``: a line a latent: its best prompt beside what random search, templates and the corpus reach.
    ``rows``: the same unabridged, one for each latent, as :func:`strata.inversion.invert.one` makes it.
    """

    table: pd.DataFrame
    summary: pd.DataFrame = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)

    @property
    def positions(self) -> pd.DataFrame:
        """A line a token of each prompt, with the latent's activation there."""
        return pd.DataFrame(write.positions(self.rows))

    @property
    def curves(self) -> pd.DataFrame:
        """The best activation of each latent and method so far, by calls of the model."""
        return pd.DataFrame([{"latent": row["latent"], **point} for row in self.rows for point in row["curves"]])


def invert(
    found: Latents,
    latents: int | list[int] = 4,
    lm: LanguageModel | None = None,
    seed: int = 0,
    **knobs: Any,
) -> Inverted:
    """Search prompts on which latents fire strongest, beside what random search and the texts of ``found`` reach.

    ``latents``: numbers of latents, or how many of the most important. ``lm``: takes the place of the model of
    ``found``; nothing checks that it is the same model. ``knobs``: others of the section invert of params.yaml, such as
    ``tokens=8`` or ``greedy={"steps": 4}``. Raises BadInput where there is no model that writes text, and for a latent
    that does not exist or is dead.

    >>> prompts = strata.invert(latents, [42])                                            # doctest: +SKIP
    >>> prompts.table[["latent", "method", "text", "activation"]]                         # doctest: +SKIP
    """
    door.of_kind("found", found, Latents, "it must be what strata.latents gives")
    model = lm or found.rows.lm
    if model is None or mute(model):
        raise BadInput("these latents are not of a language model that writes text, so there is no prompt to search")
    # The section must be complete, but the search reads neither layers nor dtype: the model is loaded already.
    dtype = {dtype: name for name, dtype in DTYPES.items()}.get(model.model.dtype, "float32")
    asked = {"layers": [found.rows.layer], "latents": latents, "dtype": dtype, **knobs}
    settings = defaults.knobs("invert", Invert, asked)
    maxima = chosen(found.opened, settings.latents, [], "latents")
    source = work.Source(model, sae_of(found.sae).to(model.device), found.opened)
    with TemporaryDirectory(prefix="strata-") as passing:
        rows = work.invert(source, maxima, settings, seed, Path(passing))
    summary = pd.DataFrame([work.summary(row) for row in rows])
    return Inverted(pd.DataFrame(write.prompts(rows)), summary, rows)
