"""Test on real words whether latents absorb one another: does a word's own latent swallow that of its first letter?

Method of Chanin et al. 2024, "A is for absorption" (arXiv 2409.14507), with the bounds of SAEBench 0.6. A linear probe
reads the first letter of a word from the activation of its token. A few *main* latents do the same for the SAE. On a
word that the probe gets right, the letter is absorbed where all main latents are silent and another latent writes the
letter's direction (see :func:`strata.evaluation.absorption.absorbed`), and lost where none writes it.

SAEBench asks a model to spell words, one prompt a word. Here the words stand in the stored text, so that the model is
not run again and every layer can be judged. Tokens of one word are all learnt from or all judged.
"""

import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from threadpoolctl import threadpool_limits
from torch import Tensor

from strata.corpus.read import SPLITS
from strata.evaluation.absorption import absorbed
from strata.evaluation.intervals import Measure, drawn_means, resampled
from strata.rows.shards import Activations, Contexts
from strata.run.door import BadInput
from strata.run.progress import each
from strata.sae.sae import SAE

LETTERS = string.ascii_lowercase
EACH = 4  # rows of a token, at the most
HELD_OUT = 0.2  # share of the words that are judged
LEAST = 10  # judged words of a letter, at the least
READ = 0.6  # F1 of a probe on judged words, from which a letter counts as read
FEWEST = 5  # letters that have to be read
MAINS, JUMP = 10, 0.03  # main latents of a letter, at the most; F1 that each further one has to add
C = 0.1  # of a probe, on standardised activations
TINY = 1e-6
BLOCK = 4096
MEASURES = "absorbed", "lost", "f1", "mains"

Bools = NDArray[np.bool_]


class Words(NamedTuple):
    """Rows of words: activations ``x`` (row, width); the ``token``, the number of its ``letter``, and whether it is
    ``judged``, (row,) each.
    """

    x: Tensor
    token: NDArray[np.integer]
    letter: NDArray[np.int64]
    judged: Bools


class Probe(NamedTuple):
    """A probe of one ``letter``: its ``direction`` (width,), of length 1, its ``f1`` on the judged rows, and on which
    rows it says yes, (row,).
    """

    letter: int
    direction: Tensor
    f1: float
    says_yes: Bools


def first_letters(pieces: Sequence[str]) -> NDArray[np.int64]:
    """Give each token the number of its first letter; -1 where it does not begin a word of two letters or more.

    ``pieces``: the text of each token, with the space before it.
    """
    return np.array([
        LETTERS.index(word[0].lower())
        if piece.startswith(" ") and len(word := piece[1:]) > 1 and word.isascii() and word.isalpha()
        else -1
        for piece in pieces
    ])  # fmt: skip


def absorption(
    sae: SAE,
    controls: Mapping[str, SAE],
    activations: Activations,
    contexts: Contexts,
    pieces: Sequence[str],
    most: int,
    seed: int,
) -> dict[str, Any]:
    """Measure on which share of the words each dictionary has the first letter absorbed, or lost.

    ``pieces``: the text of each token that the model reads. ``most``: words that are looked at. Intervals are a
    bootstrap over letters. Says ``why`` where a probe reads fewer than FEWEST letters: such a model cannot spell.
    """
    words = _words(activations, contexts, first_letters(pieces), most, seed)
    with threadpool_limits(1, "blas"):
        probes = _probes(words)
        read = [probe for probe in probes if probe.f1 >= READ]
        if len(read) < FEWEST:
            least = f"F1 of {READ} on words that it has not seen"
            return {"why": f"a linear probe reads {len(read)} first letters with an {least}, and {FEWEST} are needed"}
        by_sae = {name: _by_letter(one, words, read) for name, one in {"sae": sae, **controls}.items()}

    measures = {name: _over_letters(values, seed) for name, values in by_sae.items()}
    return {
        "words": len(np.unique(words.token)),
        "rows": len(words.token),
        "letters": "".join(LETTERS[probe.letter] for probe in read),
        "probe_f1": float(np.mean([probe.f1 for probe in read])),
        **measures.pop("sae"),
        "controls": measures,
    }


def _words(activations: Activations, contexts: Contexts, letter_of: NDArray[np.int64], most: int, seed: int) -> Words:
    """Take the first EACH rows of ``most`` tokens that begin a word, drawn from those that the text has.

    ``letter_of``: (token,) its first letter, or -1.
    """
    token = np.concatenate([contexts.rows(split)[0] for split in SPLITS])
    if token.max(initial=-1) >= len(letter_of):
        raise BadInput(f"the text has token {token.max()}, and the tokenizer in data/lm knows {len(letter_of)}")

    # Rows of one token, side by side and in the order of the text: `nth` counts them from 0.
    order = np.argsort(token, kind="stable")
    begins = np.flatnonzero(np.diff(token[order], prepend=-1))
    nth = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    rows = np.sort(order[nth < EACH])
    rows = rows[letter_of[token[rows]] >= 0]

    random = np.random.default_rng([seed, most])
    chosen = random.permutation(np.unique(token[rows]))[:most]
    judged = chosen[: round(HELD_OUT * len(chosen))]
    rows = rows[np.isin(token[rows], chosen)]
    parts = [activations.read(int(row), int(row) + 1) for row in rows]
    x = torch.cat(parts).float() if parts else torch.zeros(0, activations.width)
    return Words(x, token[rows], letter_of[token[rows]], np.isin(token[rows], judged))


def _probes(words: Words) -> list[Probe]:
    """Train a logistic regression for each letter that has LEAST judged rows and as many others."""
    learnt = ~words.judged
    x = words.x.numpy()
    if not learnt.any() or not words.judged.any():
        return []
    mean, spread = x[learnt].mean(0), x[learnt].std(0) + TINY
    standard = (x - mean) / spread

    probes = []
    for letter in each(range(len(LETTERS)), "probe", "letters"):
        y = words.letter == letter
        if y[words.judged].sum() < LEAST or y[learnt].sum() < LEAST:
            continue
        model = LogisticRegression(C=C, class_weight="balanced", max_iter=300).fit(standard[learnt], y[learnt])
        says_yes = model.predict(standard)
        direction = torch.from_numpy(model.coef_[0] / spread).float()
        f1 = f1_score(y[words.judged], says_yes[words.judged])
        probes.append(Probe(letter, direction / direction.norm(), float(f1), says_yes))
    return probes


def _by_letter(sae: SAE, words: Words, probes: Sequence[Probe]) -> NDArray[np.float64]:
    """Measure what MEASURES names for each letter, (letter, measure)."""
    codes = _codes(sae, words.x)
    rows = []
    for probe in each(probes, "choose latents", "letters"):
        y = words.letter == probe.letter
        mains, f1 = _mains(codes, y, words.judged)
        right = words.judged & y & probe.says_yes
        shares = absorbed(sae, words.x[right].to(sae.b_dec.device), probe.direction.to(sae.b_dec.device), mains)
        rows.append([shares["absorbed"], shares["lost"], f1, len(mains)])
    return np.array(rows)


@torch.inference_mode()
def _codes(sae: SAE, x: Tensor) -> csr_matrix:
    """Encode ``x`` (row, width) in blocks, (row, latent) sparse."""
    parts = []
    for block in x.split(BLOCK):
        codes = sae.encode(block.to(sae.b_dec.device)).to(torch.device("cpu"))
        places = codes.pattern.row_of.numpy(), codes.pattern.latents.numpy()
        parts.append(csr_matrix((codes.values.float().numpy(), places), shape=(len(block), sae.latents)))
    return csr_matrix(vstack(parts, "csr"))


def _mains(codes: csr_matrix, y: Bools, judged: Bools) -> tuple[list[int], float]:
    """Choose the latents that tell a letter; return them, and the F1 of a probe of them on the judged rows.

    By how much more they fire on the words of a letter than on others, each divided by its mean where it is active. The
    second counts if the probe of both has an F1 that is JUMP higher on the rows it learns from, and so on.
    """
    learnt = ~judged
    sizes = np.asarray(codes[learnt].sum(0)).ravel() / (codes[learnt].getnnz(0) + TINY)
    difference = np.asarray(codes[learnt & y].mean(0) - codes[learnt & ~y].mean(0)).ravel() / (sizes + TINY)
    order = np.argsort(-difference, kind="stable")[:MAINS]
    columns = codes[:, order].toarray()

    best, mains, judged_f1 = -1.0, [], 0.0
    for k in range(1, len(order) + 1):
        x = columns[:, :k]
        model = LogisticRegression(class_weight="balanced", max_iter=300).fit(x[learnt], y[learnt])
        f1 = f1_score(y[learnt], model.predict(x[learnt]))
        if f1 <= best + JUMP:
            break
        best, mains = f1, order[:k].tolist()
        judged_f1 = float(f1_score(y[judged], model.predict(x[judged])))
    return mains, judged_f1


def _over_letters(values: NDArray[np.float64], seed: int) -> dict[str, Measure]:
    """Average ``values`` (letter, measure) over letters, with an interval over letters drawn again."""
    drawn = drawn_means(values, np.random.default_rng(seed))
    return {name: resampled(values[:, at].mean(), drawn[:, at]) for at, name in enumerate(MEASURES)}
