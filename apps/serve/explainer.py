"""Compute an SAE's codes of a text or of vectors, as the pipeline would have computed them.

Tokens are laid out in contexts of the length that extract used, with BOS first. So the codes of a text are those that
interpret would have stored; bias, threshold, pooling and normalisation are the same.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from strata import sentences
from strata.corpus import read
from strata.device.machine import CPU
from strata.formats import npz
from strata.interpretation.labels import open_named
from strata.interpretation.read import Latents, interpreted
from strata.lm.model import DTYPES, Hook, LanguageModel, capture, check_layers, forward_until, load, pieces
from strata.pages.readable import explained
from strata.run.door import BadInput
from strata.sae import disk
from strata.sae.sae import SAE, Codes

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

POINT = re.compile(r"blocks\.(\d+)\.hook_(\w+)")
WORD = re.compile(r"\s*\S+\s*")  # all words together are the text
TOKENS = 4096  # of a text that are read; the answer says how many more there were
NAMELESS = 0.5  # a latent without a name says less to a reader, so that it counts half
PARTS = 64  # of a text that are left out, one after the other

Order = Literal["special", "strength"]


class Read(NamedTuple):
    """What was read of a text.

    ``tokens``: the token of each row of ``codes``. ``left``: how many tokens at the end were not read.
    """

    tokens: list[str]
    codes: Codes
    left: int


class Seen(NamedTuple):
    """A latent on a text: its largest code, and its code on each row."""

    latent: int
    strength: float
    codes: list[float]


@dataclass(frozen=True)
class Explainer:
    """An SAE with the model whose activations it reads.

    ``config``: that of the SAE. Without ``lm`` and ``sentence`` it reads vectors alone. ``latents``: what interpret
    and explain wrote; None where interpret did not run.
    """

    sae: SAE
    config: dict[str, Any]
    lm: LanguageModel | None = None
    sentence: "SentenceTransformer | None" = None
    latents: Latents | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What kind of SAE this is, as /health tells it."""
        metadata = self.config["metadata"]
        return {
            "model": metadata.get("model_name"),
            "hook": metadata.get("hook_name"),
            "latents": self.sae.latents,
            "width": self.sae.width,
            "reads": "tokens" if self.lm else "texts" if self.sentence else "vectors",
            "explained": self.latents is not None,
            "layer": self.latents.meta["layer"] if self.latents else None,
        }

    @cached_property
    def explanations(self) -> dict[int, list[dict[str, Any]]]:
        """Latent -> its explanations, the best first."""
        return explanations(self.latents) if self.latents else {}

    @cached_property
    def names(self) -> dict[int, str]:
        """Latent -> its name; one without is missing."""
        return self.latents.names() if self.latents else {}

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor]:
        """Each latent's largest code, 1 where it is not known, and its weight; (latents,) each."""
        if self.latents is None:
            return torch.ones(self.sae.latents), torch.ones(self.sae.latents)
        table = self.latents.table("statistics", ["max", "density", "kept"])
        assert table is not None, "interpret always writes it"
        largest, density, kept = (torch.tensor(column.to_pylist()) for column in table.columns)
        alive = kept & (largest > 0) & (density > 0)
        rarity = -density.clamp(min=1e-9, max=1 - 1e-6).log()  # above 0: a latent that is active everywhere comes last
        told = torch.tensor([1.0 if latent in self.names else NAMELESS for latent in range(len(kept))])
        return largest.float(), torch.where(alive, told * rarity / largest.clamp(min=1e-30), 0.0).float()

    @property
    def weights(self) -> Tensor:
        """What a latent's code is multiplied by to say how special it is to a text, (latents,).

        -log(density) / its largest code, and NAMELESS times that for a latent without a name; 0 for latents that the
        filters dropped. 1 for all where interpret did not run.
        """
        return self._known[1]

    def largest_code(self, latent: int) -> float:
        """Return the largest code of a latent that interpret saw; 1 where it did not run."""
        return float(self._known[0][latent])

    def share(self, latent: int, code: float) -> float | None:
        """Return which share of its largest code a latent reaches; None where that is not known."""
        return code / self.largest_code(latent) if self.latents is not None else None

    @torch.inference_mode()
    def read(self, text: str) -> Read:
        """Compute the codes of a text: a row for each token, or one row for a sentence model.

        Raises BadInput where there is no model that reads texts, and for a text of special tokens alone.
        """
        if self.sentence is not None:
            unread = next(sentences.unread(self.sentence, [text]))
            return Read([text], self._codes_of_texts([text]), unread)
        if self.lm is None:
            raise BadInput("this SAE reads vectors, and there is no model that makes them of a text; use /encode")

        ids = self.lm.read([text])[0]
        special = set(self.lm.special_ids().tolist())
        kept = [place for place, token in enumerate(ids[:TOKENS]) if token not in special]
        if not kept:
            raise BadInput("the text holds no token that is not special")

        rows = self.activations(ids[:TOKENS])[kept]
        return Read(pieces(self.lm.tokenizer, [ids[place] for place in kept]), self.codes(rows), len(ids[TOKENS:]))

    def _codes_of_texts(self, texts: list[str]) -> Codes:
        """Compute the codes of whole texts by the sentence model, a row each."""
        assert self.sentence is not None
        normalize = self.config["metadata"].get("strata", {}).get("normalize", True)
        embeddings = self.sentence.encode(
            texts, normalize_embeddings=normalize, convert_to_tensor=True, show_progress_bar=False
        )
        return self.codes(embeddings.to(torch.bfloat16))

    @torch.inference_mode()
    def without_words(self, text: str) -> tuple[list[str], Codes]:
        """Compute the codes of a text from which one word is left out, for each of its words; (word, latents).

        Returns the words, with the spaces behind them, and the codes. A text of more than PARTS words is cut into that
        many parts of neighbouring words.
        """
        words = WORD.findall(text)
        parts = min(len(words), PARTS)
        cuts = [len(words) * number // parts for number in range(parts + 1)]
        pieces = ["".join(words[first:end]) for first, end in pairwise(cuts)]
        return pieces, self._codes_of_texts(["".join(pieces[:n] + pieces[n + 1 :]) for n in range(parts)])

    @property
    def point(self) -> tuple[int, Hook]:
        """The layer and the hook where the SAE reads."""
        return _point(self.config)

    def activations(self, ids: Sequence[int]) -> Tensor:
        """Compute the activations of tokens, (token, width) bfloat16, in contexts as extract makes of one document."""
        assert self.lm is not None
        layer, hook = self.point
        size = _context(self.config, self.lm)
        step = size - 1  # tokens of a context beside BOS

        # (contexts, size): BOS, then the next tokens of the text; the end of the last context is filled with BOS
        contexts = torch.full((-(-len(ids) // step), size), self.lm.bos)
        for number, first in enumerate(range(0, len(ids), step)):
            part = torch.tensor(ids[first : first + step])
            contexts[number, 1 : 1 + len(part)] = part

        rows = []
        for context in contexts:  # one at a time, so that memory does not grow with the text
            with capture(self.lm, hook, [layer]) as captured:
                forward_until(self.lm, layer, tokens=context[None].to(self.lm.device))
            rows.append(captured[layer][0, 1:].to("cpu", torch.bfloat16))
        return torch.cat(rows)[: len(ids)]

    def last_activation(self, ids: Sequence[int]) -> Tensor:
        """Compute the last row of :meth:`activations`, (1, width), of which only the last context is read."""
        assert self.lm is not None
        step = _context(self.config, self.lm) - 1
        return self.activations(ids[(len(ids) - 1) // step * step :])[-1:]

    @torch.inference_mode()
    def codes(self, x: Tensor) -> Codes:
        """Compute the codes of activations (row, width). Raises BadInput where a code is not finite."""
        codes = self.sae.encode(x.to(self.sae.b_dec.device)).to(CPU)
        if not torch.isfinite(codes.values).all():
            raise BadInput("the vectors are so long that a code overflows")
        return codes


def by_row(codes: Codes) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, row by row, the active latents and their codes, (active,) each."""
    counts = codes.active().tolist()
    return zip(codes.pattern.latents.split(counts), codes.values.split(counts), strict=True)


def explanations(latents: Latents) -> dict[int, list[dict[str, Any]]]:
    """Return latent -> its explanations, the best first; their ``text`` may be None."""
    table = latents.table("explanations")
    return explained(table.to_pylist() if table else [])


def open_explainer(sae: Path, lm: Path | None, latents: Path | None, device: torch.device = CPU) -> Explainer:
    """Open an SAE with its model.

    ``sae``: a folder, or an `encoder.npz`. ``lm`` and ``latents``: the folders that fetch and interpret wrote; both may
    be missing. What explain wrote is taken from beside ``latents``. ``lm`` may also be the folder of a
    sentence-transformers model that fetch did not bring.

    Raises BadInput where the three do not belong together.
    """
    coder, config = npz.load(sae) if sae.suffix == ".npz" else disk.load(sae)
    known = open_named(latents) if latents and (latents / "meta.json").exists() and interpreted(latents) else None
    if known is not None and (known.meta["latents"], known.meta["width"]) != (coder.latents, coder.width):
        raise BadInput(f"{latents} is of another SAE than {sae}")
    of_vectors = Explainer(coder.to(device), config, latents=known)

    if lm is None or not (lm / "meta.json").exists():
        not_fetched = lm is not None and (lm / "modules.json").exists()
        return _with_sentence(of_vectors, str(lm), device) if not_fetched else of_vectors

    meta, strata = read.lm_meta(lm), config["metadata"].get("strata", {})
    if meta["fingerprint"] != strata.get("model_fingerprint", meta["fingerprint"]):  # an .npz may not name its model
        raise BadInput(f"{sae} was trained on activations of {config['metadata'].get('model_name')}, not of {lm}")
    source, options = read.lm_path(lm)
    dtype = DTYPES[strata.get("forward", "bfloat16")]
    if meta["kind"] == read.SENTENCE:
        return replace(of_vectors, sentence=sentences.load(source, device, dtype, **options))
    if meta["kind"] == read.OWN_VECTORS:
        return of_vectors

    layer, _ = _point(config)
    model = load(source, dtype, device, **options)
    check_layers([layer], len(model.blocks), f"{sae}: hook_name")
    if model.width != coder.width:
        raise BadInput(f"{sae} reads vectors of {coder.width} numbers, but the activations of {lm} have {model.width}")
    _context(config, model)
    return replace(of_vectors, lm=model)


def _with_sentence(explainer: Explainer, folder: str, device: torch.device) -> Explainer:
    """Add a sentence model that fetch did not bring. Raises BadInput where its vectors have another width."""
    forward = explainer.config["metadata"].get("strata", {}).get("forward", "bfloat16")
    model = sentences.load(folder, device, DTYPES[forward])
    if (width := model.get_embedding_dimension()) != explainer.sae.width:
        raise BadInput(f"{folder} makes vectors of {width} numbers, but this SAE reads {explainer.sae.width}")
    return replace(explainer, sentence=model)


def _point(config: dict[str, Any]) -> tuple[int, Hook]:
    """Return the layer and the hook of an SAE on a language model. Raises BadInput where its config names none."""
    name = config["metadata"].get("hook_name", "")
    match = POINT.fullmatch(name)
    if match is None or match[2] not in get_args(Hook):
        raise BadInput(f"the SAE's hook is {name!r}, which is none of a language model's")
    return int(match[1]), match[2]  # pyright: ignore[reportReturnType]


def _context(config: dict[str, Any], lm: LanguageModel) -> int:
    """Return the number of tokens in a context, BOS included, but no more than the model reads.

    It is the number with which the SAE was trained, where the SAE says so.
    """
    size = config["metadata"].get("context_size", TOKENS)
    if not isinstance(size, int) or size < 2:
        raise BadInput(f"the SAE's context_size is {size!r}; it must be a whole number of at least 2")
    return min(size, lm.positions or size)


def ranked(explainer: Explainer, found: Read, most: int, order: Order = "special") -> list[Seen]:
    """Return at most ``most`` of the latents that are active on a text, in ``order``.

    special: by how special they are to the text (:attr:`Explainer.weights`), without those that the filters dropped.
    strength: all of them, by their largest code.
    """
    values, pattern = found.codes.values, found.codes.pattern
    largest = torch.zeros(pattern.width).scatter_reduce(0, pattern.latents, values, "amax")  # (latents,)
    rank = largest * explainer.weights if order == "special" else largest

    result = []
    for latent in map(int, np.argsort(-rank.numpy(), kind="stable")[:most]):
        if rank[latent] > 0:
            entries = pattern.latents == latent
            codes = torch.zeros(len(found.tokens))
            codes[pattern.row_of[entries]] = values[entries]
            result.append(Seen(latent, float(largest[latent]), codes.tolist()))
    return result


def left_out(explainer: Explainer, found: Read) -> int:
    """Count the active latents that the order "special" leaves out, because the filters of interpret dropped them."""
    active = found.codes.pattern.latents.unique()
    return int((explainer.weights[active] == 0).sum())
