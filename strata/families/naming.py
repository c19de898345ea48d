"""Names of clusters: what their members' explanations say more often than other latents' do."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import log

from strata.interpretation.read import Latents
from strata.pages.readable import inline

ITEM = re.compile(r'("(?:[^"\\]|\\.)*") \(\d+ %\)')  # a token in the text of a rule, as JSON
BEFORE = re.compile(r"the token before is|tokens before stands")  # from here on it is of other tokens than its own
WORD = re.compile(r"\w+")


def words(latents: Latents) -> dict[int, list[str]]:
    """Latent -> what its explanations name, each once: the tokens that a rule lists first, the words of others."""
    found: dict[int, dict[str, None]] = {}
    table = latents.table("explanations", ["latent", "source", "text"])
    for row in [] if table is None else table.to_pylist():
        of = found.setdefault(row["latent"], {})
        of.update(dict.fromkeys(_named(row["text"] or "", row["source"] in ("rule", "label"))))
    return {latent: list(of) for latent, of in found.items()}


def _named(text: str, rule: bool) -> list[str]:
    items = map(json.loads, ITEM.findall(BEFORE.split(text)[0])) if rule else WORD.findall(text)
    return [word for item in items if (word := inline(item).strip().lower())]


def names(
    members: Sequence[Sequence[int]], medoids: Sequence[int], said: Mapping[int, Sequence[str]], count: int
) -> list[str]:
    """A name for each cluster: up to ``count`` words w with the largest  p ln(p / q),  p the share of members whose
    explanation has w, q the share of all latents whose has.

    A word must be of two members; where none is, the first words of the medoid's explanation stand.
    """
    everyone = Counter(word for of in said.values() for word in of)
    found = []
    for cluster, medoid in zip(members, medoids, strict=True):
        inside = Counter(word for latent in cluster for word in said.get(latent, ()))
        tells = {
            word: n / len(cluster) * log(n / len(cluster) * len(said) / everyone[word])
            for word, n in inside.items()
            if n > 1
        }
        best = sorted((word for word in tells if tells[word] > 0), key=lambda word: (-tells[word], word))
        found.append(" · ".join((best or said.get(medoid, ()))[:count]) or f"like latent {medoid}")
    return found
