"""Name clusters by the words that their members' explanations have more often than other latents' explanations."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import log

from strata.interpretation.read import Latents
from strata.pages.readable import inline

ITEM = re.compile(r'("(?:[^"\\]|\\.)*") \(\d+ %\)')  # a token in the text of a rule, as JSON
BEFORE = re.compile(r"the token before is|tokens before stands")  # what follows is about other tokens
WORD = re.compile(r"\w+")
BROKEN = "\ufffd"  # stands for a part of a letter: a token may end within one, and says nothing to a reader


def words(latents: Latents) -> dict[int, list[str]]:
    """Map each explained latent to the words of its explanations, each word once.

    A rule gives the tokens that it lists first, any other explanation all its words.
    """
    # A dict of None is a set that keeps its order.
    words_of: dict[int, dict[str, None]] = {}
    table = latents.table("explanations", ["latent", "source", "text"])
    for row in [] if table is None else table.to_pylist():
        latent_words = words_of.setdefault(row["latent"], {})
        latent_words.update(dict.fromkeys(_named(row["text"] or "", row["source"] in ("rule", "label"))))
    return {latent: list(latent_words) for latent, latent_words in words_of.items()}


def _named(text: str, rule: bool) -> list[str]:
    """List the words of one explanation, in lower case; of a rule, the tokens that the latent itself fires on."""
    items = map(json.loads, ITEM.findall(BEFORE.split(text)[0])) if rule else WORD.findall(text)
    words_said = (inline(item).strip().lower() for item in items)
    return [word for word in words_said if word and BROKEN not in word]


def names(
    members: Sequence[Sequence[int]], medoids: Sequence[int], said: Mapping[int, Sequence[str]], count: int
) -> list[str]:
    """Name each cluster by up to ``count`` words w with the largest  p ln(p / q).

    p is the share of members whose explanation has w, q the share of all explained latents whose explanation has it. A
    word must belong to at least two members. Where no word does, the name is the first words of the medoid's
    explanation; where there is none, "like latent …".

    ``members``: the latents of each cluster. ``medoids``: one latent for each cluster. ``said``: latent -> its words.
    """
    latents_with = Counter(word for latent_words in said.values() for word in latent_words)
    cluster_names = []
    for cluster, medoid in zip(members, medoids, strict=True):
        members_with = Counter(word for latent in cluster for word in said.get(latent, ()))
        gain = {
            word: n / len(cluster) * log(n / len(cluster) * len(said) / latents_with[word])
            for word, n in members_with.items()
            if n > 1
        }
        best = sorted((word for word in gain if gain[word] > 0), key=lambda word: (-gain[word], word))
        cluster_names.append(" · ".join((best or said.get(medoid, ()))[:count]) or f"like latent {medoid}")
    return cluster_names
