"""Steering with what the front door gives."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from strata.front.files import sae_of
from strata.lm.model import LanguageModel
from strata.run.params import Hook
from strata.steering import steer as steering
from strata.steering.steer import At, Change


@contextmanager
def steer(
    lm: "LanguageModel | Any",
    sae: Any,
    changes: Mapping[int, Change],
    layer: int,
    hook: Hook = "resid_post",
    at: At = "all",
    replace: bool = False,
) -> Iterator[None]:
    """Inside the block every pass of ``lm``, also each step of ``generate``, runs with latents changed.

    ``lm``: what :func:`strata.load_lm` gives, or a model of transformers'. ``sae``: an SAE, or what
    :func:`strata.train`, merge or load gives. ``changes``: latent -> ``strata.Set(value)`` or ``Add(strength)``, in the
    units of its code, or ``Scale(factor)``, which multiplies the code. ``hook``: the place in the layer, "resid_post",
    "resid_pre", "mlp_out" or "attn_out".

    ``at``: ``"all"`` tokens but special ones, also those that are generated; ``"last"``: the last token of each pass
    that is not padding, and so each that is generated, unless it is special; or a list of positions in the prompt,
    where padding does not count (0: the first token, which is BOS if there is one; -1: the last). What the SAE does not
    explain of an activation stays in it, unless ``replace`` splices the reconstruction in.

    >>> with strata.steer(lm, sae, {42: strata.Set(100.0)}, layer=6):                     # doctest: +SKIP
    ...     ids = lm.model.generate(**lm.tokenizer("The city of", return_tensors="pt"), max_new_tokens=20)
    """
    with steering.steer(lm, sae_of(sae), changes, layer, hook, at, replace):
        yield
