"""Names of clusters: what their members' explanations say more often than other latents' do."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log

from stages.interpret.read import Latents
from stages.readable import inline

WORD = re.compile(r"\w+")
LONGEST = 40  # items of a latent's rule that may name it, the strongest: rules of dense latents list a thousand


def words(latents: Latents) -> dict[int, list[str]]:
    """Latent -> the words of its explanations: the tokens of its rule at the token itself, and what it was explained
    by in words. Each once, the strongest first."""
    found: dict[int, dict[str, float]] = {}
    table = latents.table("rules", ["latent", "offset", "pieces", "values"])
    for row in [] if table is None else table.to_pylist():
        if row["offset"] == 0:
            of = found.setdefault(row["latent"], {})
            for piece, value in zip(row["pieces"], row["values"], strict=True):
                if word := _word(piece):
                    of[word] = max(value, of.get(word, 0.0))
    table = latents.table("explanations", ["latent", "source", "text"])
    for row in [] if table is None else table.to_pylist():
        if row["source"] != "rule" and row["text"]:
            of = found.setdefault(row["latent"], {})
            of |= {word.lower(): 0.0 for word in WORD.findall(row["text"]) if word.lower() not in of}
    return {latent: sorted(of, key=lambda word: (-of[word], word))[:LONGEST] for latent, of in found.items()}


def _word(piece: str) -> str:
    return inline(piece).strip().lower()


def names(
    members: Sequence[Sequence[int]], medoids: Sequence[int], said: Mapping[int, Sequence[str]], count: int
) -> list[str]:
    """A name for each cluster: up to ``count`` words w with the largest  p ln(p / q),  p the share of members whose
    explanation has w, q the share of all latents whose has.

    Words of a single member name a cluster only where there are no others; then the medoid's come first.
    """
    everyone = Counter(word for words in said.values() for word in words)
    return [
        " · ".join(_distinctive(cluster, medoid, said, everyone, count)) or f"like latent {medoid}"
        for cluster, medoid in zip(members, medoids, strict=True)
    ]


def _distinctive(
    cluster: Sequence[int], medoid: int, said: Mapping[int, Sequence[str]], everyone: Counter[str], count: int
) -> Iterable[str]:
    inside = Counter(word for latent in cluster for word in said.get(latent, ()))
    shared = {word: n for word, n in inside.items() if n > 1}

    def tells(word: str) -> tuple[float, str]:
        share = inside[word] / len(cluster)
        return -share * log(share * len(said) / everyone[word]), word

    best = [word for word in sorted(shared, key=tells) if tells(word)[0] < 0][:count]
    return best or list(said.get(medoid, ()))[:count]
