"""What the latents of an SAE fire on, in one call."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from strata import defaults
from strata.corpus import read as corpus
from strata.front.activations import LayerActivations, home_of, stored
from strata.front.files import sae_of
from strata.interpretation import interpret as work
from strata.interpretation import vocabulary
from strata.interpretation.explain import check
from strata.interpretation.explain_knobs import Explain
from strata.interpretation.explaining import explain_latents
from strata.interpretation.knobs import Interpret
from strata.interpretation.read import Latents as Opened
from strata.interpretation.read import open_latents
from strata.lm.model import capture, forward_until, pieces
from strata.notebook import Vectors
from strata.pages.readable import explained
from strata.run import door
from strata.run.door import BadInput
from strata.sae.sae import SAE


@dataclass(frozen=True)
class Latents:
    """What is known of an SAE's latents on some rows.

    ``table``: a line a latent: density, interest, importance, largest code, its best explanation and that one's scores.
    """

    sae: SAE = field(repr=False)
    rows: LayerActivations
    opened: Opened = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    _home: Any = field(repr=False, default=None)

    def __len__(self) -> int:
        return self.sae.latents

    def examples(self, latent: int, kind: str = "top", most: int = 10) -> pd.DataFrame:
        """Windows of text for one latent. ``kind``: top, decile, random, zero or near (a near miss)."""
        door.whole("latent", latent, 0, self.sae.latents - 1)
        found = self._of("examples", latent)
        kinds = sorted(found["kind"].unique()) if len(found) else []
        if kinds:
            door.choice("kind", kind, kinds)
        return found[found["kind"] == kind].head(most).reset_index(drop=True) if kinds else found

    def explanations(self, latent: int | None = None) -> pd.DataFrame:
        """Token rules, labels and explanations in words, with their scores beside chance; of all latents, or of one."""
        return self._of("explanations", latent)

    def logits(self, latent: int) -> pd.DataFrame:
        """The tokens that a latent's direction promotes and suppresses most; empty without a language model."""
        return self._of("logits", latent)

    def enrichment(self, latent: int | None = None) -> pd.DataFrame:
        """Labels that are commoner than chance where a latent is strongest; empty where there are not two labels."""
        return self._of("enrichment", latent)

    def neighbours(self, latent: int) -> pd.DataFrame:
        """Latents that write in nearly the same direction."""
        return self._of("neighbours", latent)

    def on(self, text: str, most: int = 10) -> pd.DataFrame:
        """The latents that a new text makes fire strongest: their largest code, at which token, and what they mean."""
        door.of_kind("text", text, str, "it must be one text")
        lm, rows = self.rows.lm, self.rows
        if lm is None:
            raise BadInput("these latents are of vectors; encode the text first, and look at strata.notebook.strongest")
        tokens = [lm.bos, *lm.read([text])[0]][: lm.positions]
        if len(tokens) == 1:
            raise BadInput("the text has no token")
        hook: Any = rows.hook
        with torch.inference_mode(), capture(lm, hook, [rows.layer]) as seen:
            forward_until(lm, rows.layer, tokens=torch.tensor([tokens], device=lm.device))
            special = torch.isin(torch.tensor(tokens), lm.special_ids().cpu())
            x = seen[rows.layer][0].float().to(self.sae.b_dec.device)
            codes = self.sae.encode(x).dense().cpu()
            codes = codes.masked_fill(special[:, None], 0)  # BOS and the like are never counted
        largest, where = codes.max(0)
        order = largest.argsort(descending=True, stable=True)[: door.whole("most", most, 1)]
        chosen = [int(latent) for latent in order if largest[latent] > 0]
        names = pieces(lm.tokenizer, tokens)
        return pd.DataFrame(
            {
                "latent": chosen,
                "code": [float(largest[latent]) for latent in chosen],
                "token": [names[int(where[latent])] for latent in chosen],
                "explanation": [self.table["explanation"].iloc[latent] for latent in chosen],
            }
        )

    def _of(self, name: str, latent: int | None) -> pd.DataFrame:
        filters = None if latent is None else [("latent", "=", door.whole("latent", latent, 0, len(self) - 1))]
        found = self.opened.table(name, filters=filters)
        return pd.DataFrame() if found is None else found.to_pandas()


def latents(
    sae: Any,
    rows: "LayerActivations | Vectors",
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "cpu",
    **knobs: Any,
) -> Latents:
    """Look at every latent of ``sae`` on ``rows``: where it fires, on which tokens, how strongly, and what it writes.

    ``rows``: those that the SAE was trained on, or others of the same model and layer. Where their texts have labels
    (:func:`strata.activations`), each is tested for being commoner than chance where a latent is strongest. ``knobs``:
    others of the section interpret of params.yaml, such as ``window`` or ``examples={"top": 5}``. ``folder``: where the
    tables are kept; a temporary one unless it is named.

    >>> found = strata.latents(sae, acts[6])                                              # doctest: +SKIP
    >>> found.table.nlargest(10, "interest")[["latent", "density", "explanation"]]        # doctest: +SKIP
    >>> found.examples(42)                                                                # doctest: +SKIP
    """
    model = sae_of(sae)
    on = stored(rows, seed) if isinstance(rows, Vectors) else rows
    door.of_kind("rows", on, LayerActivations, "it must be what strata.activations gives for one layer, or Vectors")
    if not on.corpus.is_dir():
        raise BadInput(
            "these rows have no texts to look at latents on; take rows that strata.activations makes of some"
        )
    settings = defaults.knobs("interpret", Interpret, {"exports": [], **knobs})
    work.check(model, on.activations)
    source = work.Source(on.activations, on.contexts, *corpus.titles(on.corpus), _vocabulary(on))

    home, target = home_of(folder)
    with TemporaryDirectory(prefix=".work-", dir=target) as passing:
        work.interpret(model.to(door.device(device)), source, settings, seed, target, Path(passing))
    opened = open_latents(target)
    return Latents(model, on, opened, _table(opened), home)


def explain(
    found: Latents,
    model: str = "lm",
    latents: int = 8,
    seed: int = 0,
    folder: str | Path | None = None,
    **knobs: Any,
) -> Latents:
    """Explain the most important latents in words, each scored on texts that the explainer did not see.

    ``model``: ``"lm"`` (the language model itself), a folder or hub name, or ``endpoint:NAME`` (an API like OpenAI's;
    its address and key from OPENAI_BASE_URL and OPENAI_API_KEY). ``latents``: how many. ``seed``: draws the controls.
    ``folder``: where the explanations are kept; a temporary one unless it is named. ``knobs``: others of the section
    explain of params.yaml. Returns the same latents with explanations: ``.explanations()`` and ``.table``.

    >>> named = strata.explain(found, model="endpoint:gpt-5-mini", latents=20)            # doctest: +SKIP
    """
    door.of_kind("found", found, Latents, "it must be what strata.latents gives")
    door.of_kind("model", model, str, "it must be lm, a folder, a name, or endpoint:NAME")
    asked = {**knobs, "model": model, "latents": latents, "layers": [found.rows.layer]}
    settings = defaults.knobs("explain", Explain, asked)
    check(settings)

    own = replace(found.opened, explained=None)  # what interpret wrote, also where they are explained already
    home, target = home_of(folder)
    with TemporaryDirectory(prefix=".work-", dir=target) as passing:
        explain_latents(own, found.rows.contexts, _vocabulary(found.rows), settings, seed, target, Path(passing))
    opened = open_latents(own.folder, target)
    return replace(found, opened=opened, table=_table(opened), _home=(found._home, home))


def _vocabulary(rows: LayerActivations) -> vocabulary.Vocabulary:
    """The tokens of the rows' model, or their texts where there is none."""
    return vocabulary.of_documents(corpus.Texts(rows.corpus)) if rows.lm is None else vocabulary.of_tokens(rows.lm)


def _table(opened: Opened) -> pd.DataFrame:
    """A line a latent, with its best explanation, the score F1 of that and what chance gives."""
    statistics, explanations = opened.statistics(), opened.table("explanations")
    assert explanations is not None, "interpret always writes it"
    best = {latent: rows[0] for latent, rows in explained(explanations.to_pylist()).items()}
    notes = [best.get(latent, {}) for latent in statistics["latent"].to_pylist()]
    return statistics.to_pandas().assign(
        explanation=[note.get("text") or "" for note in notes],
        source=[note.get("source") or "" for note in notes],
        f1=[note.get("f1") for note in notes],
        f1_chance=[note.get("f1_chance") for note in notes],
    )
