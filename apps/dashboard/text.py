"""Tab: show which latents a text activates, by the codes that the pipeline would have stored."""

import json

import pandas as pd
import streamlit as st
import torch

from apps.dashboard.marks import marks
from apps.dashboard.view import View
from apps.dashboard.widgets import csv, kept, slider, table
from apps.serve.explainer import Explainer, Read, left_out, open_explainer, ranked
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
    try:
        read = _read(view, explainer)
    except BadInput as refusal:
        st.error(str(refusal))
        return

    dropped = left_out(explainer, read)
    active = len(read.codes.pattern.latents.unique()) - dropped
    if not active:
        st.info("No latent is active." if not dropped else "All latents that are active were dropped by the filters.")
        return
    most = slider("Latents", 1, min(50, active), 10, "top")
    rows = view.now(lambda: ranked(explainer, read, most))
    st.caption(
        "The latents that are most special to this text stand first: rare ones whose code is large for them."
        + (f" {dropped} active latents are left out, which the filters dropped." if dropped else "")
    )
    names = explainer.names

    if len(read.tokens) > 1:
        for latent, strength, codes in rows:
            head = f"latent {latent} · strength {number(strength)} · {names.get(latent, 'no name yet')}"
            st.html(marks(read.tokens, codes, strength, head, view.page(latent)))
    else:
        shown = [(view.link(latent), strength, names.get(latent)) for latent, strength, _ in rows]
        table(pd.DataFrame(shown, columns=["latent", "strength", "name"]))

    lines = [
        {"latent": latent, "place": place, "token": token, "code": code, "name": names.get(latent)}
        for latent, _, codes in rows
        for place, (token, code) in enumerate(zip(read.tokens, codes, strict=True))
        if code > 0
    ]
    csv(pd.DataFrame(lines), "codes of the text")
    if read.left:
        st.caption(f"{read.left} more tokens were not read.")


def _read(view: View, explainer: Explainer) -> Read:
    """Ask for a text, or for a vector where the SAE reads vectors alone, and compute its codes."""
    if explainer.facts["reads"] == "vectors":
        example = json.dumps([round(float(x), 4) for x in view.sample().x[0]])
        vector = _asked("A vector, as a JSON list of numbers", "vector", example)
        return view.now(lambda: _vector(explainer, vector))
    text = _asked("Text", "text", TEXT)
    return view.now(lambda: explainer.read(text))


def _asked(label: str, name: str, example: str) -> str:
    """Ask for a text that counts when the button is pressed."""
    with st.form(name, border=False):
        typed = st.text_area(label, key=kept(name, example), max_chars=20_000)
        st.form_submit_button("Explain", type="primary")
    return typed


def _vector(explainer: Explainer, typed: str) -> Read:
    """Compute the codes of a vector that was typed. Raises BadInput where it is none of the SAE's width."""
    width = explainer.sae.width
    try:
        x = torch.tensor(json.loads(typed), dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise BadInput("this is no JSON list of numbers") from None
    if x.shape != (width,):
        raise BadInput(f"this SAE reads vectors of {width} numbers, but the list is of shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise BadInput("a number of the list is NaN or infinity")
    return Read(["the vector"], explainer.codes(x[None].to(CPU)), 0)
