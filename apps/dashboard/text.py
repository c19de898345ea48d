"""Tab: which latents a text activates, by the codes that the pipeline would have stored."""

import json

import pandas as pd
import streamlit as st
import torch

from apps.dashboard.marks import marks
from apps.dashboard.view import View
from apps.dashboard.widgets import csv, kept, slider
from apps.serve.explainer import Explainer, Read, open_explainer, strongest
from strata.device.machine import CPU
from strata.pages.readable import number
from strata.run.door import BadInput

TEXT = "The treaty was signed in Paris in the spring of 1763, and the war was over."


def show(view: View) -> None:
    if not view.project.has_sae(view.layer):
        st.info("The stage train has not run for this layer.")
        return
    data, layer = view.project.data, str(view.layer)
    explainer = view.model(
        lambda: open_explainer(data / "sae" / layer, data / "lm", data / "latents" / layer), "explainer"
    )
    vectors = explainer.facts["reads"] == "vectors"
    say = "A vector, as a JSON list of numbers" if vectors else "Text"
    first = json.dumps([round(float(x), 4) for x in view.sample().x[0]]) if vectors else TEXT
    given = st.text_area(say, key=kept("vector" if vectors else "text", first), max_chars=None if vectors else 20_000)
    try:
        found = view.now(lambda: _vector(explainer, given) if vectors else explainer.read(given))
    except BadInput as refusal:
        st.error(str(refusal))
        return
    active = len(found.codes.pattern.latents.unique())
    if not active:
        st.info("No latent is active.")
        return
    most = slider("Latents", 1, min(50, active), 10, "top")
    rows = view.now(lambda: strongest(found, most))
    notes = {latent: (explainer.explanations.get(latent) or [{}])[0] for latent, _, _ in rows}
    if len(found.tokens) > 1:
        for latent, strength, codes in rows:
            note = notes[latent].get("text") or "no explanation"
            st.html(marks(found.tokens, codes, strength, f"latent {latent} · strength {number(strength)} · {note}"))
    else:
        columns = {"latent": [row[0] for row in rows], "strength": [row[1] for row in rows]}
        st.dataframe({**columns, "explanation": [notes[row[0]].get("text") for row in rows]}, hide_index=True)
    lines = [
        {"latent": latent, "place": place, "token": token, "code": code, "explanation": notes[latent].get("text")}
        for latent, _, codes in rows
        for place, (token, code) in enumerate(zip(found.tokens, codes, strict=True))
        if code > 0
    ]
    csv(pd.DataFrame(lines), "codes of the text")
    if found.left:
        st.caption(f"{found.left} more tokens were not read.")


def _vector(explainer: Explainer, given: str) -> Read:
    """The codes of a vector that was typed."""
    width = explainer.sae.width
    try:
        x = torch.tensor(json.loads(given), dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise BadInput("this is no JSON list of numbers") from None
    if x.shape != (width,):
        raise BadInput(f"this SAE reads vectors of {width} numbers, but the list is of shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise BadInput("a number of the list is NaN or infinity")
    return Read(["the vector"], explainer.codes(x[None].to(CPU)), 0)
