"""A tiny model whose latents read planted tokens, to invert."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import VOCABULARY, tiny_tokenizer

from strata.interpretation.read import Latents, open_latents
from strata.inversion.invert import Source
from strata.inversion.knobs import Greedy, Invert, Soft
from strata.inversion.objective import Objective, embedded, states
from strata.inversion.vocabulary import Vocabulary
from strata.lm.model import LanguageModel, load
from strata.run import files
from strata.run.params import check
from strata.sae.sae import SAE
from strata.seeds import generator

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
LAYER, TOKENS, LATENTS, DEAD = 1, 6, 6, 5
WORDS = range(4, len(VOCABULARY))  # what is not special
WHERE = "invert.latents"
SUN = VOCABULARY.index("sun")
KNOBS: dict[str, Any] = {
    "run": True,
    "layers": [LAYER],
    "latents": 2,
    "tokens": TOKENS,
    "keep_prefix": "",
    "dtype": "float32",
    "greedy": {
        "starts": {"corpus": 1, "random": 1, "pool": 4},
        "steps": 6,
        "candidates": 8,
        "top": 8,
        "fluency": [0.0, 0.1],
    },
    "soft": {
        "starts": 2,
        "steps": 12,
        "lr": 0.3,
        "distance": 0.1,
        "diversity": 0.0,
        "repetition": 0.0,
        "fluency": 0.0,
    },
    "templates": 3,
}


def knobs(**changes: Any) -> Invert:
    return check({**KNOBS, **changes}, Invert, "params.yaml: invert")


def no_starts(soft: int) -> Invert:
    """Of greedy search; and so many of soft search."""
    starts = {"corpus": 0, "random": 0, "pool": 4}
    return knobs(greedy={**KNOBS["greedy"], "starts": starts}, soft={**KNOBS["soft"], "starts": soft})


def soft_knobs(**changes: Any) -> Soft:
    return knobs(soft={**KNOBS["soft"], **changes}).soft


def greedy_knobs(**changes: Any) -> Greedy:
    return knobs(greedy={**KNOBS["greedy"], **changes}).greedy


def plain(folder: Path) -> LanguageModel:
    """The model of ``folder`` with blocks that add little, so that a token can be told from the stream; and with the
    tokenizer as it was made: transformers opens a folder of Qwen2 with one of bytes, whatever the files say."""
    lm = load(folder, torch.float32, CPU)
    with torch.no_grad():
        for name, parameter in lm.blocks.named_parameters():
            parameter.mul_(0.1 if parameter.dim() > 1 or "post" in name else 1.0)
    return LanguageModel(lm.model, lm.blocks, tiny_tokenizer)


def planted(lm: LanguageModel) -> SAE:
    """Latent j reads how much of a token there is in the residual stream, by least squares over random contexts: about
    10 on the token, 0 elsewhere. The first reads ``sun``."""
    prompts = torch.randint(WORDS[0], WORDS[-1] + 1, (400, TOKENS), generator=generator(0, "contexts"))
    x = states(lm, "resid_post", LAYER, embedded(lm, prompts))[:, 1:].flatten(0, 1)
    names = torch.tensor([SUN, *[word for word in WORDS if word != SUN][: LATENTS - 1]])
    there = (prompts.flatten()[:, None] == names).float()
    rows = 10 * torch.linalg.lstsq(x - x.mean(0), there - there.mean(0)).solution.T
    return SAE(rows, 10 * there.mean(0), rows.clone(), x.mean(0), threshold=torch.full((LATENTS,), 3.0))


def interpreted(folder: Path, lm: LanguageModel, sae: SAE) -> Latents:
    """What the stage reads of interpret's tables, the corpus being random tokens."""
    corpus = torch.randint(WORDS[0], WORDS[-1] + 1, (20, 12), generator=generator(0, "corpus"))
    x = states(lm, "resid_post", LAYER, embedded(lm, corpus))[:, 1:]
    codes = sae.encode(x.flatten(0, 1))
    found = codes.pattern.dense(codes.values).view(20, 12, -1)
    statistics, examples, tokens = [], [], []
    for latent in range(LATENTS):
        dead, best = latent == DEAD, found[..., latent]
        values = {"max": 0.0 if dead else float(best.max()), "importance": float(best.mean())}
        statistics.append({"latent": latent, **values, "dead": dead, "kept": latent != 1})
        for rank, row in enumerate(best.amax(1).argsort(descending=True)[:3].tolist()):
            place = {"rank": rank, "position": int(best[row].argmax()) + 1, "first": 1}
            examples.append({"latent": latent, "kind": "top", **place, "tokens": corpus[row].tolist()})
        for rank, word in enumerate(("sun", "cat", "hills", ".")):
            tokens.append({"latent": latent, "rank": rank, "piece": word})
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {"statistics": statistics, "examples": examples, "tokens": tokens}.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    meta = {"layer": LAYER, "hook": "resid_post", "latents": LATENTS, "width": lm.width, "shards": []}
    files.write_json(folder / "meta.json", {**meta, "model": FACTS, "texts": None, "unit": "token"})
    return open_latents(folder)


FACTS = {"name": "tiny", "revision": None, "fingerprint": "abc"}


def source_of(folder: Path, latents: Path) -> Source:
    """The model of ``folder`` with the planted SAE, and its ``latents`` as interpret would write them."""
    lm = plain(folder)
    sae = planted(lm)
    return Source(lm, sae, interpreted(latents, lm, sae))


def objective_of(source: Source, latent: int = 0) -> Objective:
    return Objective(source.lm, source.sae, "resid_post", LAYER, latent, 10.0)


def without_sun(words: Vocabulary, count: int, seed: int = 0) -> torch.Tensor:
    drawn = words.random(200, TOKENS, generator(seed))
    return drawn[(drawn != SUN).all(1)][:count]
