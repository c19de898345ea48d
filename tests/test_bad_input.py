"""Bad input of every kind: one sentence each, before anything is done, and nothing that was there is touched."""

import importlib
import io
import math
import os
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from apps.plan.words import changed
from stages.select.whole import whole
from strata import notebook
from strata.corpus.corpus import build
from strata.corpus.knobs import Corpus
from strata.corpus.place import whole_folder
from strata.device import machine
from strata.formats import found
from strata.front import own
from strata.interpretation import read
from strata.interpretation.read import open_latents
from strata.rows.shards import open_activations
from strata.run import door, params
from strata.run.door import BadInput
from strata.sae import disk
from strata.sae.sae import SAE
from strata.weights import fetch

ROOT = Path(__file__).resolve().parents[1]
WHOLE: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
NAN, INF = math.nan, math.inf

# --- params.yaml --------------------------------------------------------------------------------------------------

# What `-S` or an editor would put into params.yaml, a key and its value or several; words that the sentence must have.
PARAMS: list[tuple[dict[str, Any], str]] = [
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**70}, "seed is"),
    ({"seed": 2**32}, "seed is"),
    ({"seed": "7"}, "seed is"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"seed": True}, "seed is True"),
    ({"seed": None}, "seed is None"),
    ({"layers": []}, "layers is []"),
    ({"layers": [3, 9, 9]}, "9 is there twice"),
    ({"layers": [-1, 9]}, "layers.0 is -1"),
    ({"layers": ["9"]}, "layers.0 is"),
    ({"layers": [9.0]}, "layers.0 is 9.0"),
    ({"layers": 9}, "layers is 9"),
    ({"layers": "9"}, "layers is '9'"),
    ({"layers": [9, None]}, "layers.1 is None"),
    ({"layers": [9, 10**6]}, "layers.1 is 1000000"),
    ({"layers": [3, 6], "extract.layers": [3, 9]}, "extract.layers is [3, 9], but layers names 6"),
    ({"layers": "all"}, "layers is 'all'"),
    ({"by_layer": {9: {"k": "x"}}}, "by_layer.9.k is the text 'x'"),
    ({"by_layer": {"9": {"kk": 3}}}, "by_layer.9.kk is not a known key; did you mean by_layer.9.k?"),
    ({"by_layer": {"zzz": 1}}, "by_layer"),
    ({"by_layer": {"zzz": {"k": 1}}}, "'zzz' is no number of a layer"),
    ({"by_layer": {-1: {"k": 1}}}, "-1 is no number of a layer"),
    ({"by_layer": {9: {"k": 3}, "9": {"k": 4}}}, "layer 9 is there twice"),
    ({"by_layer": {9: None}}, "by_layer.9 is None"),
    ({"by_layer": {9: {"k": 10**5}}}, "by_layer.9: k is 100000"),
    ({"by_layer": {9: {"lr": NAN}}}, "by_layer.9.lr is nan"),
    ({"by_layer": {7: {"latents": -1}}}, "by_layer.7.latents is -1"),
    ({"by_layer": {9: {"from_tune": ["lr"]}}}, "by_layer.9.from_tune changes nothing"),
    ({"by_layer": []}, "by_layer is []"),
    ({"machine.threads": 10**6}, "machine.threads is 1000000"),
    ({"machine.threads": 0}, "machine.threads is 0"),
    ({"machine.device": "gpu"}, "machine.device"),
    ({"machine.device": "cuda:x"}, "machine.device"),
    ({"machine.device": "cud"}, "did you mean cuda"),
    ({"machine.save_every": INF}, "machine.save_every is inf"),
    ({"machine.save_every": -1}, "machine.save_every is -1"),
    ({"machine.thread": 2}, "machine.thread is not a known key"),
    ({"fetch.lm.kind": "langauge"}, "did you mean language?"),
    ({"fetch.lm.kind": "vectors"}, "with fetch.lm.kind vectors"),
    ({"fetch.lm.kind": "vectors", "layers": [0]}, "fetch.lm.source"),
    ({"fetch.lm.kind": "sentence", "layers": [0], "extract.layers": [0, 1]}, "extract.layers is [0, 1], but with"),
    ({"fetch.lm.source": None}, "fetch.lm.source is null"),
    ({"fetch.lm.source": ""}, "fetch.lm.source"),
    ({"fetch.lm.revision": 5}, "fetch.lm.revision is 5"),
    ({"fetch.lm.trust_remote_code": "yes"}, "trust_remote_code is 'yes'"),
    ({"fetch.corpus.sources": []}, "sources is []"),
    ({"fetch.corpus.sources": "a.csv"}, "sources is 'a.csv'"),
    ({"fetch.corpus.sources": ["a.csv"]}, "sources.0"),
    ({"fetch.corpus.sources": [{"source": ""}]}, "sources.0.source is ''"),
    ({"fetch.corpus.sources": [{"source": "a.csv", "kind": "csv"}]}, "sources.0.kind"),
    ({"fetch.corpus.sources": [{"source": "a.csv", "txt": "body"}]}, "did you mean fetch.corpus.sources.0.text?"),
    ({"fetch.corpus.sources": [{"source": "a.csv", "separator": ";;"}]}, "separator"),
    ({"fetch.corpus.sources": [{"source": "a.db", "kind": "sql"}]}, "needs a query"),
    ({"fetch.corpus.sources": [{"source": "a.csv", "documents": 0}]}, "documents is 0"),
    ({"fetch.corpus.sources": [{"source": "a.csv"}, {"source": "a.csv"}]}, "is there twice; write it once"),
    ({"fetch.corpus.documents": 0}, "documents is 0"),
    ({"fetch.corpus.min_chars": -1}, "min_chars is -1"),
    ({"fetch.corpus.max_chars": 10, "fetch.corpus.min_chars": 200}, "max_chars 10 is less than min_chars"),
    ({"fetch.corpus.near_duplicates": 0}, "near_duplicates is 0"),
    ({"fetch.corpus.near_duplicates": 1.5}, "near_duplicates is 1.5"),
    ({"fetch.corpus.near_duplicates": NAN}, "near_duplicates is nan"),
    ({"fetch.corpus.balance": "smalest"}, "did you mean smallest?"),
    ({"fetch.corpus.balance": 0}, "balance"),
    ({"fetch.corpus.max_bad_rows": -1}, "max_bad_rows is -1"),
    ({"fetch.corpus.validation": 1.0}, "validation is 1.0"),
    ({"fetch.corpus.validation": 0.6, "fetch.corpus.test": 0.5}, "leave nothing to train on"),
    ({"fetch.corpus.validation": 0.0}, "validation"),
    ({"extract.hook": "resid"}, "extract.hook is 'resid'"),
    ({"extract.hook": "mlpout"}, "did you mean mlp_out?"),
    ({"extract.tokens": 0}, "extract.tokens is 0"),
    ({"extract.tokens": 1e6}, "extract.tokens is 1000000.0"),
    ({"extract.tokens": 10**18}, "extract.tokens is"),
    ({"extract.context": 1}, "extract.context is 1"),
    ({"extract.context": 10**9}, "extract.context is 1000000000"),
    ({"extract.batch_size": 10**9}, "extract.batch_size is 1000000000"),
    ({"extract.dtype": "fp16"}, "extract.dtype is 'fp16'"),
    ({"extract.shard_rows": 0}, "extract.shard_rows is 0"),
    ({"extract.shard_rows": 10**12}, "extract.shard_rows is"),
    ({"extract.pack": "no"}, "extract.pack is 'no'"),
    ({"extract.layers": []}, "extract.layers is []"),
    ({"extract.layers": [3, 6, 6, 9]}, "6 is there twice"),
    ({"tune.sampler": "tpe"}, "tune.sampler is 'tpe'"),
    ({"tune.calls": 5}, "starts is 5"),
    ({"tune.calls": 10**9}, "tune.calls is 1000000000"),
    ({"tune.rows": 0}, "tune.rows is 0"),
    ({"tune.space": {}}, "it is empty"),
    ({"tune.space": {"lrr": {"min": 0.1, "max": 1.0}}}, "did you mean lr?"),
    ({"tune.space.lr": {"min": 0.1, "max": INF}}, "tune.space: lr.max is inf"),
    ({"tune.space.lr": {"min": 0.1, "max": 0.01}}, "lr.min is 0.1"),
    ({"tune.space.lr": [NAN, 0.1]}, "lr may be nan"),
    ({"tune.space": {"lr": {"min": 0.001, "max": 0.01}, "k": [32, 8192]}}, "k is 8192"),
    (
        {"tune.space": {"lr": {"min": 0.001, "max": 0.01}, "latents": [64, 8192]}, "train.k": 80},
        "more than the 64 latents",
    ),
    ({"tune.space": {"auxk": [0.1, 0.2]}}, "train.from_tune names 'lr'"),
    ({"train.from_tune": ["lr", "lr"]}, "'lr' is there twice"),
    ({"train.from_tune": ["learning_rate"]}, "from_tune"),
    ({"train.from_tune": ["epochs"]}, "from_tune"),
    ({"train.kk": 3}, "train.kk is not a known key; did you mean train.k?"),
    ({"train.lr": "1e-4"}, "write it without quotes"),
    ({"train.lr": INF}, "train.lr is inf"),
    ({"train.lr": 0}, "train.lr is 0"),
    ({"train.latents": 10**10}, "train.latents is 10000000000"),
    ({"train.latents": int("9" * 400)}, "train.latents is 9999"),
    ({"train.latents": 4096.0}, "train.latents is 4096.0"),
    ({"train.k": 0}, "train.k is 0"),
    ({"train.k": 5000}, "k is 5000, more than the 4096 latents"),
    ({"train.rule": "topK"}, "did you mean topk?"),
    ({"train.groups": [0.5, 0.25, 1.0]}, "groups"),
    ({"train.groups": [0.5, NAN, 1.0]}, "groups.1 is nan"),
    ({"train.groups": []}, "groups"),
    ({"train.wake": INF}, "train.wake is inf"),
    ({"train.epochs": 0}, "train.epochs is 0"),
    ({"train.epochs": 10**7}, "train.epochs is 10000000"),
    ({"train.batch_size": 10**9}, "train.batch_size is 1000000000"),
    ({"train.micro_batches": 3, "train.batch_size": 1024}, "micro_batches is 3"),
    ({"train.window_rows": 10**15}, "train.window_rows is"),
    ({"train.warmup": 1.1}, "train.warmup is 1.1"),
    ({"train.beta1": 1.0}, "train.beta1 is 1.0"),
    ({"train.decay": "cos"}, "did you mean cosine?"),
    ({"train.encoder": {"file": "a.npz"}}, "train.encoder.sha256 is missing"),
    ({"train.encoder": "a.npz"}, "train.encoder is 'a.npz'"),
    ({"train.ce_tokens": -1}, "train.ce_tokens is -1"),
    ({"interpret.texts": {"min_chars": 0}}, "interpret.texts lacks sources"),
    ({"interpret.texts": {"sources": [{"source": "a.csv"}], "min_char": 0}}, "fetch.corpus.min_chars?"),
    ({"interpret.texts": "a.csv"}, "interpret.texts is 'a.csv'"),
    ({"interpret.window": 10**9}, "interpret.window is 1000000000"),
    ({"interpret.logits": 10**9}, "interpret.logits is 1000000000"),
    ({"interpret.tokens": 10**9}, "interpret.tokens is 1000000000"),
    ({"interpret.neighbours": 10**9}, "interpret.neighbours is 1000000000"),
    ({"interpret.examples.random": 10**9}, "interpret.examples.random is 1000000000"),
    ({"interpret.examples.pool": 10**12}, "interpret.examples.pool is"),
    ({"interpret.exports": ["jsonl", "csv"]}, "interpret.exports.1 is 'csv'"),
    ({"interpret.exports": ["npy", "npy"]}, "'npy' is there twice"),
    ({"interpret.filters.firing": {"min": 0.9, "max": 0.1}}, "min 0.9 is above max 0.1"),
    ({"interpret.filters.entropy": {"min": NAN, "max": 1.0}}, "entropy.min is nan"),
    ({"interpret.filters.quadrants": []}, "quadrants is []"),
    ({"interpret.filters.quadrants": ["flowin"]}, "did you mean flowing?"),
    ({"interpret.filters.firing": {"min": 1.5, "max": None}}, "firing"),
    ({"interpret.enrichment.rows": 0}, "enrichment.rows is 0"),
    ({"explain.range": [5, 1]}, "range"),
    ({"explain.range": [5, 5]}, "range"),
    ({"explain.range": [-1, 5]}, "range.0 is -1"),
    ({"explain.range": [1]}, "range"),
    ({"explain.range": [5000, 6000]}, "range"),
    ({"explain.layers": [9, 9]}, "9 is there twice"),
    ({"explain.model": ""}, "explain.model: '' names no model"),
    ({"explain.model": "endpoint:"}, "explain.model"),
    ({"explain.timeout": INF}, "timeout is inf"),
    ({"explain.retries": 10**6}, "retries is 1000000"),
    ({"explain.parallel": 10**6}, "parallel is 1000000"),
    ({"interpret.items": 1}, "items is 1"),
    ({"cluster.method": "kmean"}, "did you mean kmeans?"),
    ({"cluster.clusters": 0}, "cluster.clusters is 0"),
    ({"cluster.clusters": 1.5}, "cluster.clusters is 1.5"),
    ({"cluster.clusters": "many"}, "cluster.clusters is 'many'"),
    ({"cluster.clusters": 5000}, "cluster.clusters is 5000"),
    ({"cluster.distance": 3}, "cluster.distance is 3"),
    ({"cluster.eps": NAN}, "cluster.eps is nan"),
    ({"cluster.weights": {"decoder": 0.0, "profile": 0.0, "correlation": 0.0, "jaccard": 0.0}}, "count for nothing"),
    ({"cluster.weights.decoder": INF}, "weights.decoder is inf"),
    ({"cluster.map.neighbours": 10**6}, "map.neighbours is 1000000"),
    ({"cluster.selection.clusters": "single", "cluster.selection.single": 999}, "cluster.selection.single is 999"),
    ({"cluster.selection.percentile": 101}, "percentile is 101"),
    ({"cluster.stability.bootstraps": 10**6}, "bootstraps is 1000000"),
    ({"cluster.heatmap": 10**6}, "heatmap is 1000000"),
    ({"merge.latents": 0}, "merge.latents is 0"),
    ({"merge.latents": 2048}, "merge.latents is 2048"),
    ({"merge.by": "cluster"}, "did you mean clusters?"),
    ({"merge.by": "clusters", "cluster.method": "kmeans"}, "merge"),
    ({"merge.curve": [0.5, 0.5]}, "0.5 is there twice"),
    ({"merge.curve": [0.5, 2.0]}, "curve"),
    ({"merge.ridge": NAN}, "merge.ridge is nan"),
    ({"invert.layers": [9, 9]}, "9 is there twice"),
    ({"invert.layers": [-9]}, "invert.layers.0 is -9"),
    ({"invert.latents": 0}, "invert.latents is 0"),
    ({"invert.latents": [4096]}, "invert.latents"),
    ({"invert.latents": [3, 3]}, "3 is there twice"),
    ({"invert.latents": []}, "invert.latents is []"),
    ({"invert.latents": [-1]}, "invert.latents.0 is -1"),
    ({"invert.tokens": 10**6}, "invert.tokens is 1000000"),
    ({"invert.dtype": "float8"}, "did you mean float"),
    ({"invert.greedy.fluency": []}, "fluency"),
    ({"invert.greedy.fluency": [INF]}, "fluency.0 is inf"),
    (
        {"invert.greedy.starts": {"corpus": 0, "random": 0, "pool": 64}, "invert.soft.starts": 0},
        "no search has a start",
    ),
    ({"invert.greedy.starts.random": 100}, "pool is 64"),
    ({"invert.soft.lr": INF}, "soft.lr is inf"),
    ({"steer_eval.strengths": [NAN]}, "strengths.0 is nan"),
    ({"steer_eval.strengths": []}, "strengths is []"),
    ({"steer_eval.strengths": [0, 1, 1]}, "1.0 is there twice"),
    ({"steer_eval.strengths": ["1"]}, "strengths.0 is the text '1'"),
    ({"steer_eval.latents": [1, 9999]}, "steer_eval.latents"),
    ({"steer_eval.latents": -4}, "steer_eval.latents is -4"),
    ({"steer_eval.tokens": 128}, "steer_eval.tokens is 128"),
    ({"steer_eval.scored": 25}, "scored"),
    ({"steer_eval.texts": ["  "]}, "one of texts is empty"),
    ({"steer_eval.texts": "a prompt"}, "texts is 'a prompt'"),
    ({"steer_eval.prompts": 0}, "prompts is 0"),
    ({"steer_eval.kl": INF}, "steer_eval.kl is inf"),
    ({"steer_eval.bootstraps": 10**9}, "bootstraps is 1000000000"),
    ({"steer_eval.generate.strengths": [NAN]}, "strengths.0 is nan"),
    ({"steer_eval.generate.tokens": 10**6}, "generate.tokens is 1000000"),
    ({"controls.twins": []}, "controls.twins is []"),
    ({"controls.twins": ["frozen_decodr"]}, "did you mean frozen_decoder"),
    ({"targets.fvu_inlier": {"beats": {"frozen_encoder": -1}}}, "beats.frozen_encoder is -1"),
    ({"targets.l0": {"beats": {"frozen_encoder": 1}}}, "l0 has beats, but only mse, fvu"),
    ({"targets.fvu": {"beats": {"random_model": 0.1}}}, "beats names random_model, whose rows are others"),
    (
        {"targets.fvu": {"beats": {"near_random_decoder": 0.1}}},
        "beats names near_random_decoder, but controls.twins is",
    ),
    ({"evaluate.seeds": 0}, "evaluate.seeds is 0"),
    ({"evaluate.seeds": 10**6}, "evaluate.seeds is 1000000"),
    ({"evaluate.probing.k": []}, "probing.k is []"),
    ({"evaluate.probing.k": [1, 1]}, "1 is there twice"),
    ({"evaluate.probing.k": [5000]}, "probing.k"),
    ({"evaluate.probing.held_out": 1.0}, "held_out is 1.0"),
    ({"stability.seeds": 10**6}, "stability.seeds is 1000000"),
    ({"stability.cosine": 0.0}, "stability.cosine is 0.0"),
    ({"stability.cofiring": 1.0}, "stability.cofiring is 1.0"),
    ({"stability.rows": 1}, "stability.rows is 1"),
    ({"stability.pool": 3}, "stability.pool is 3"),
    ({"interpret.filters.again": {"min": 0.5, "max": None}}, "stability.seeds is 0"),
    ({"evaluate.tasks.prompts": 50}, "tasks.prompts is 50"),
    ({"evaluate.tasks.pooling": []}, "tasks.pooling is []"),
    ({"evaluate.tasks.pooling": ["max"]}, "'max'"),
    ({"evaluate.tasks.k": [1, 1]}, "1 is there twice"),
    ({"evaluate.tasks.sources": [{"source": "package:bbc-news", "prompt": "text"}]}, "package:bbc-news is none"),
    ({"evaluate.tasks.sources": [{"source": "a.csv", "task": "all"}]}, "task"),
    ({"evaluate.absorption": -1}, "absorption is -1"),
    ({"evaluate.letters": -1}, "letters is -1"),
    ({"targets.again": {"min": 0.25}}, "stability.seeds is 0"),
    ({"targets.mse": {"max": NAN}}, "targets.mse.max is nan"),
    ({"targets.l0": {"min": 100, "max": 50}}, "min 100 is above max 50"),
    ({"targets.dead": {}}, "cannot fail"),
    ({"targets.fvu_inlyer": {"max": 1.0}}, "did you mean fvu_inlier?"),
    ({"targets.dead": {"max": -0.1}}, "dead lies between 0 and 1"),
    ({"targets.enforce": 1}, "targets.enforce is 1"),
    ({"targets.mse": 0.01}, "targets.mse is 0.01"),
    ({"report.title": ""}, "report.title is ''"),
    ({"report.title": 7}, "report.title is 7"),
    ({"report.outlier_tokens": -1}, "outlier_tokens is -1"),
    ({"report.outlier_tokens": 10**9}, "outlier_tokens is 1000000000"),
    ({"report.pages": -1}, "report.pages is -1"),
    ({"interpet": {}}, "did you mean interpret?"),
]


@pytest.mark.parametrize("changes, words", PARAMS, ids=[str(changes)[:60] for changes, _ in PARAMS])
def test_a_bad_param_is_refused_where_it_is_read_first(changes: dict[str, Any], words: str):
    values = changed(deepcopy(WHOLE), {f"+{key}": value for key, value in changes.items()})
    with pytest.raises(BadInput) as refusal:
        whole(values)
    sentence = str(refusal.value)
    assert sentence.startswith("params.yaml") and words in sentence
    assert "\n" not in sentence and len(sentence) < 500


# --- command lines ------------------------------------------------------------------------------------------------

BELOW, NOWHERE, LONG = "a_file/below", "/proc/nothing/here", "x" * 300
# A script and its words, run in the folder `here`; the exit code, and words that the sentence must have.
LINES: list[tuple[str, int, str]] = [
    ("select", 2, "TARGET is missing"),
    ("select ''", 2, "TARGET is empty"),
    ("select --layers", 2, "--layers is no option"),
    ("select a_file", 1, "a_file"),
    (f"select {BELOW}", 1, BELOW),
    (f"select {NOWHERE}", 1, "/proc/nothing"),
    (f"select {LONG}", 1, "name too long"),
    ("fetch_lm", 2, "TARGET is missing"),
    ("fetch_corpus out more", 2, "'more' is one word too many"),
    ("fetch_texts", 2, "TARGET is missing"),
    ("fetch_lm out more", 2, "'more' is one word too many"),
    (f"fetch_corpus {BELOW}", 1, "a_file"),
    (f"fetch_corpus {NOWHERE}", 1, "/proc/nothing"),
    (f"fetch_corpus {LONG}", 1, "name too long"),
    ("extract none none none out", 1, "none is missing"),
    ("extract none none a_file out", 1, "a_file"),
    ("extract lm", 2, "CORPUS, LAYERS, TARGET are missing"),
    ("tune none out", 1, "none/meta.json is missing"),
    ("train none none none none none out out out", 1, "none/meta.json is missing"),
    ("train 9", 2, "are missing"),
    ("controls none none none none none none none out out", 1, "none/meta.json is missing"),
    ("stability none out", 2, "are missing"),
    ("interpret none none none none none none none none none out out", 1, "none/meta.json is missing"),
    ("explain none none none none none none none none none out out", 1, "none/meta.json is missing"),
    ("cluster none none none none out out", 1, "none/meta.json"),
    ("merge none none none none none none out out out", 1, "none"),
    ("invert none none none none none out out", 1, "none/meta.json is missing"),
    ("steer_eval none none none none none none none none none none out out", 1, "none/meta.json is missing"),
    ("fetch_tasks a_file/tasks", 1, "a_file"),
    ("extract_tasks none none none out", 1, "none is missing"),
    ("evaluate none none none none none none none none none none none none out", 1, "none/meta.json is missing"),
    (f"report{' none' * 20}", 1, "none"),
    (f"track{' none' * 7}", 1, "none"),
    ("convert", 2, "SOURCE, TARGET are missing"),
    ("convert none out", 1, "none is missing"),
    ("convert '' out", 2, "SOURCE is empty"),
    ("convert sae ''", 2, "TARGET is empty"),
    ("convert sae out saelen", 2, "did you mean saelens?"),
    ("convert sae out strata relu", 1, "relu"),
    ("convert sae sae", 1, "there already"),
    (f"convert sae {BELOW}", 1, BELOW),
    (f"convert sae {NOWHERE}", 1, "/proc/nothing"),
    (f"convert sae {LONG}", 1, "name too long"),
    ("convert a_file out", 1, "a_file"),
    ("convert empty out", 1, "empty holds nothing"),
    ("convert hub:x out", 1, "hub:x"),
    ("convert sae hub:x", 1, "hub:x"),
    ("convert k_is_text.npz out", 1, "k_is_text.npz"),
    ("convert metadata_cut.npz out", 1, "metadata_cut.npz"),
    ("convert words.npz out", 1, "words.npz"),
    ("convert objects.npz out", 1, "objects.npz"),
    ("convert nan.npz out", 1, "nan.npz"),
    ("convert complex.npz out", 1, "complex.npz"),
    ("convert lies.npz out", 1, "lies.npz"),
    ("convert cut.npz out", 1, "cut.npz"),
    ("convert half_k.npz out", 1, "half_k.npz"),
    ("convert text.pt out", 1, "text.pt"),
    ("convert nested out", 1, "cfg.json"),
    ("convert a_list out", 1, "cfg.json"),
    ("convert cut_weights out", 1, "cut_weights"),
    ("show", 2, "LAYER, LATENT are missing"),
    ("show 9", 2, "LATENT is missing"),
    ("show nine 1", 2, "the layer is 'nine'"),
    ("show 9 -1", 2, "the latent is '-1'"),
    ("show 9 1.5", 2, "the latent is '1.5'"),
    (f"show 9 {'9' * 5000}", 2, "the latent is"),
    ("show 9 1 --root", 2, "ROOT is given by its place"),
    ("show 9 1", 1, "data/latents/9"),
    ("show 9 1 params.yaml", 1, "params.yaml"),
    ("show 9 1 ''", 2, "ROOT is empty"),
    ("verify none", 1, "none holds no complete activations"),
    ("verify a_file", 1, "a_file"),
    ("verify of_nothing", 1, "of_nothing/9"),
    ("verify of_a_list", 1, "of_a_list/9"),
    ("verify ''", 2, "ROOT is empty"),
    ("serve", 2, "SAE is missing"),
    ("serve none", 1, "none"),
    ("serve sae/sae_weights.safetensors", 1, "sae_weights.safetensors"),
    ("serve a_file", 1, "a_file"),
    ("serve sae none", 1, "none is neither"),
    ("serve sae '' '' '' 0", 2, "the port is '0'"),
    ("serve sae '' '' '' 70000", 2, "the port is '70000'"),
    ("serve sae '' '' '' http", 2, "the port is 'http'"),
    ("serve sae '' '' '' 8000 0.0.0.0", 1, "STRATA_TOKEN"),
    ("serve sae --port 8000", 2, "PORT is given by its place"),
    ("dashboard none", 1, "none"),
    ("dashboard a_file", 1, "a_file"),
    ("dashboard none reports 99999", 2, "the port is '99999'"),
    ("plan train.k", 2, "is no key=value"),
    ("plan =3", 2, "is no key=value"),
    ("plan train.kk=3", 1, "did you mean train.k?"),
    ("plan +train.kk=3", 1, "did you mean train.k?"),
    ("plan trian.k=3", 1, "did you mean train.k?"),
    ("plan +foo.bar=1", 1, "unknown section 'foo'"),
    ("plan seed.x=1", 1, "seed"),
    ("plan train=3", 1, "train is 3"),
    ("plan width=nan", 2, "width is 'nan'"),
    ("plan width=0", 2, "width is '0'"),
    ("plan width=1.5 blocks=2 parameters=1e6", 2, "width is '1.5'"),
    ("plan parameters=1e400", 2, "parameters is '1e400'"),
    (f"plan parameters=1{'0' * 400}", 2, "parameters is"),
    ("plan width=768", 1, "width is given, but not blocks"),
    (f"plan train.latents={'9' * 400}", 1, "train.latents is 999"),
    (f"plan train.latents={'9' * 5000}", 1, "train.latents is"),
    (f"plan layers={'[' * 100_000}", 1, "layers is"),
    ("plan layers=[9,9]", 1, "9 is there twice"),
    ("plan layers=[99] width=768 blocks=12 parameters=124e6", 1, "layer 99"),
    ("plan --help=x", 2, "--help=x is no option"),
    ("ui x", 2, "the port is 'x'"),
    ("pareto out", 1, "not inside of a DVC repository"),
    ("pareto a b", 2, "'b' is one word too many"),
    ("pareto --target", 2, "TARGET is given by its place"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the default params.yaml, an SAE, and files that are broken in one way each."""
    folder = tmp_path_factory.mktemp("here")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "a_file").write_text("no folder")
    (folder / "empty").mkdir()
    rows = torch.eye(4)
    disk.save(folder / "sae", SAE(rows, torch.zeros(4), rows, torch.zeros(4), k=2), {})
    for name, text in (("nested", "[" * 100_000), ("a_list", "[]")):
        shutil.copytree(folder / "sae", folder / name)
        (folder / name / disk.CONFIG).write_text(text)
    shutil.copytree(folder / "sae", folder / "cut_weights")
    weights = folder / "cut_weights" / disk.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-9])
    for name, text in (("of_nothing", "{}"), ("of_a_list", "[]")):
        (folder / name / "9").mkdir(parents=True)
        (folder / name / "9" / "meta.json").write_text(text)

    w, b = np.eye(4, dtype=np.float32), np.zeros(4, np.float32)
    arrays: dict[str, dict[str, Any]] = {
        "k_is_text": {"W": w, "b": b, "k": np.array("a")},
        "half_k": {"W": w, "b": b, "k": np.array(1.5)},
        "metadata_cut": {"W": w, "b": b, "metadata": np.array("{")},
        "words": {"W": w.astype(str), "b": b},
        "nan": {"W": w * np.nan, "b": b},
        "complex": {"W": w * 1j, "b": b},
    }
    for name, values in arrays.items():
        np.savez(folder / f"{name}.npz", **values)
    np.savez(folder / "objects.npz", W=np.array([{}] * 4, object), b=b)
    whole = (folder / "nan.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[:-30])
    with zipfile.ZipFile(folder / "lies.npz", "w") as archive:
        for name, shape in (("W", (10**5, 10**5)), ("b", (10**5,))):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", header.getvalue() + b"\0" * 64)
    (folder / "text.pt").write_text("no tensors")
    return folder


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes, and every folder."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}


@pytest.mark.parametrize("line, code, words", LINES, ids=[line[:60] for line, _, _ in LINES])
def test_a_bad_command_line_is_one_sentence_and_touches_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, code: int, words: str
):
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("STRATA_TRACKING", "off")
    monkeypatch.delenv("STRATA_TOKEN", raising=False)
    script, *given = shlex.split(line)
    main = importlib.import_module(f"src.{script}").main
    sys.modules.pop(f"src.{script}")  # other tests run it as `python -m` does, which warns where it is there already
    monkeypatch.setattr(sys, "argv", [script, *given])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it was started"))
    before = content(here)
    with pytest.raises(SystemExit) as end:
        door.run(main)
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (code, 1) and words in said and len(said) < 900
    assert content(here) == before


# --- sources ------------------------------------------------------------------------------------------------------

V = {"vector": "v"}
# A file (its bytes, by name), how params.yaml names it, and words that the sentence must have.
SOURCES: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("empty.csv", b"", {}, "empty.csv"),
    ("head.csv", b"text\n", {}, "the corpus is empty"),
    ("blank.csv", b"text\n\n \n", {}, "the corpus is empty"),
    ("other.csv", b"body\nhello\n", {}, "other.csv has no column 'text'"),
    ("label.csv", b"text,topic\nhello,a\n", {"label": "topics"}, "'topics'"),
    ("long_row.csv", b"text,label\na,b\na,b,c\n", {}, "long_row.csv"),
    ("short_row.csv", b"text,label\na,b\na\n", {}, "short_row.csv"),
    ("quote.csv", b'text,label\n"a,b\nc,d\n', {}, "quote.csv"),
    ("twice.csv", b"text,text\na,b\n", {}, "twice.csv"),
    ("nul.csv", b"text\na\0b\n", {}, "nul.csv"),
    ("latin.csv", "text\ncafé\n".encode("latin-1"), {}, "latin.csv"),
    ("table.tsv", b"text\tlabel\na\tb\tc\td\n", {}, "table.tsv"),
    ("no.jsonl", b'{"text": "a"}\n{"text": \n', {}, "no.jsonl"),
    ("list.jsonl", b"[1, 2]\n", {}, "list.jsonl"),
    ("word.jsonl", b'"text"\n', {}, "word.jsonl"),
    ("deep.jsonl", b"[" * 100_000 + b"\n", {}, "deep.jsonl"),
    ("number.jsonl", b'{"text": 5}\n', {"text": "txt"}, "'txt'"),
    ("cut.csv.gz", b"\x1f\x8b\x08\x00cut", {}, "cut.csv.gz"),
    ("plain.csv.gz", b"text\nhello\n", {}, "plain.csv.gz"),
    ("plain.csv.bz2", b"text\nhello\n", {}, "plain.csv.bz2"),
    ("no.parquet", b"PAR1 and nothing else", {}, "no.parquet"),
    ("empty.parquet", b"", {}, "empty.parquet"),
    ("empty.txt", b"", {}, "the corpus is empty"),
    ("latin.txt", "café".encode("latin-1"), {}, "latin.txt"),
    ("dump.xml", b"<mediawiki><page>", {}, "dump.xml"),
    ("page.xml", b"<html></html>", {}, "the corpus is empty"),
    ("no.npy", b"no array", V, "no.npy"),
    ("cut.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9, 4), }", V, "cut.npy"),
    ("no.npz", b"PK no archive", V, "no.npz"),
    ("empty.npz", b"", V, "empty.npz"),
    ("no.db", b"no database", {"query": "select 1"}, "no.db"),
    ("a.db", b"", {}, "needs a query"),
    ("b.db", b"", {"query": "select text from nothing"}, "b.db"),
    ("c.db", b"", {"query": "drop table x"}, "c.db"),
    ("d.db", b"", {"query": "attach database 'x.db' as z"}, "d.db"),
    ("e.db", b"", {"query": "   "}, "e.db"),
    ("a.csv", b"text\nhello\n", {"kind": "array", **V}, "a.csv"),
    ("a.csv", b"text\nhello\n", {"query": "select 1"}, "query"),
    ("a.csv", b"text\nhello\n", {"unit": "page"}, "unit"),
    ("a.txt", b"hello", {"unit": "section"}, "unit is section"),
    ("a.txt", b"hello", {"label": "topic"}, "label"),
    ("a.doc", b"hello", {}, "a.doc"),
    ("none.csv", b"", {"source": "nowhere.csv"}, "nowhere.csv"),
    ("none.csv", b"", {"source": "x" * 5000 + ".csv"}, "xxx"),
    ("none.csv", b"", {"source": "package:nothing"}, "nothing"),
    ("a.csv", b"text\nhello\n", {"kind": "mediawiki"}, "a.csv"),
    ("none.csv", b"", {"source": "env:NO_SUCH_VARIABLE", "query": "select 1"}, "NO_SUCH_VARIABLE"),
    ("none.csv", b"", {"source": "postgresql://u:geheim@127.0.0.1:9/x", "query": "select 1"}, "127.0.0.1"),
]


@pytest.mark.parametrize(
    "name, content, more, words", SOURCES, ids=[f"{name} {more}"[:50] for name, _, more, _ in SOURCES]
)
def test_a_bad_source_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, more: dict[str, Any], words: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / name).write_bytes(content)
    section = {**WHOLE["fetch"]["corpus"], "min_chars": 0, "sources": [{"source": name, **more}]}
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "meta.json").write_text("an earlier result")
    with pytest.raises(BadInput) as refusal, whole_folder(tmp_path / "corpus") as folder:
        build(params.check(section, Corpus, "params.yaml: fetch.corpus"), 0, folder)
    sentence = str(refusal.value)
    assert words in sentence and "\n" not in sentence and len(sentence) < 6000 and "geheim" not in sentence
    assert (tmp_path / "corpus" / "meta.json").read_text() == "an earlier result"
    assert {path.name for path in tmp_path.iterdir()} == {name, "corpus"}


# --- calls from Python --------------------------------------------------------------------------------------------

book: Any = notebook  # what a user types is checked by no one else


def rows(x: np.ndarray) -> Any:
    """Vectors as a call takes them."""
    return notebook.Vectors(x, [str(number) for number in range(len(x))], [""] * len(x))


ROWS = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
CODER: Any = SAE(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4), k=2)
CALLS: list[tuple[str, Callable[[], object], str]] = [
    ("a text for texts", lambda: book.encode_texts("one text"), "text"),
    ("no texts", lambda: book.encode_texts([]), "text"),
    ("nothing", lambda: book.encode_texts(None), "None"),
    ("a number among texts", lambda: book.encode_texts(["a", 5]), "5"),
    ("a model that is not there", lambda: book.encode_texts(["a"], "package:nothing"), "nothing"),
    ("an array for vectors", lambda: book.train(ROWS), "ndarray"),
    ("no vectors", lambda: book.train(rows(ROWS[:0])), "0"),
    ("one vector", lambda: book.train(rows(ROWS[:1])), "1"),
    ("NaN", lambda: book.train(rows(np.full((40, 8), NAN, np.float32))), "NaN"),
    ("a misspelt knob", lambda: book.train(rows(ROWS), latent=4), "latents"),
    ("a wrong rule", lambda: book.train(rows(ROWS), rule="topkk"), "topk"),
    ("k above latents", lambda: book.train(rows(ROWS), latents=4, k=5), "k is 5"),
    ("a seed below 0", lambda: book.train(rows(ROWS), seed=-1), "seed"),
    ("NaN as lr", lambda: book.train(rows(ROWS), lr=NAN), "lr"),
    ("text as k", lambda: book.train(rows(ROWS), k="4"), "k"),
    ("an SAE of another width", lambda: CODER.encode(torch.zeros(3, 9)), "9"),
    ("whole numbers for an SAE", lambda: CODER.encode(torch.zeros(3, 4, dtype=torch.int64)), "int64"),
    ("a list for an SAE", lambda: CODER.encode([[0.0] * 4]), "list"),
    ("a file that is not there", lambda: book.load("nowhere.parquet"), "nowhere.parquet"),
    ("an SAE that is not there", lambda: disk.load(Path("nowhere")), "nowhere"),
    ("activations that are not there", lambda: open_activations(Path("nowhere")), "nowhere"),
    ("latents that are not there", lambda: open_latents(Path("nowhere")), "nowhere"),
]


@pytest.mark.parametrize("call, words", [case[1:] for case in CALLS], ids=[case[0] for case in CALLS])
def test_a_bad_call_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], object], words: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput) as refusal:
        call()
    assert words in str(refusal.value) and "\n" not in str(refusal.value) and not list(tmp_path.iterdir())


READERS: dict[str, Callable[[Path], object]] = {
    "an SAE": disk._weights,
    "another tool's SAE": found.read_tensors,
    "rows": lambda path: list(own._safetensors(path, None)),
    "a model": fetch._sizes,
    "codes": read._opened,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_folder_in_place_of_tensors_is_one_sentence(tmp_path: Path, reader: Callable[[Path], object]):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(BadInput, match=r"a\.safetensors is (no file that can be read|truncated or no)") as refusal:
        reader(tmp_path / "a.safetensors")
    assert "\n" not in str(refusal.value)


def test_there_are_enough_of_them():
    counts = (len(PARAMS), len(LINES), len(SOURCES), len(CALLS))
    assert all(count >= least for count, least in zip(counts, (90, 50, 40, 20), strict=True))


# --- sizes --------------------------------------------------------------------------------------------------------


def test_a_training_that_does_not_fit_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "free_memory", lambda _: 10**9)
    # 7 copies of two matrices, two biases and a threshold, in float32: 7 × 4 × (16 + 2) × 10^7 bytes
    with pytest.raises(BadInput, match=r"^training 10,000,000 latents of width 8 needs 5\.0 GB of memory, and 1\.0 GB"):
        notebook.train(rows(ROWS), latents=10**7, k=4)


@pytest.mark.parametrize(
    "section, held",
    [
        (whole(WHOLE).cluster, 10 * 1000**2),
        (whole(WHOLE).merge, 8 * (1000**2 + 500**2)),
    ],
)
def test_what_is_held_for_pairs_of_latents(section: Any, held: float):
    assert section.held_bytes(1000) == held


def test_what_is_held_for_other_trainings():
    """Two SAEs of two float32 matrices, a block of similarities, and 1000 pooled latents at most: sums and a copy."""
    on = whole({**WHOLE, "stability": {**WHOLE["stability"], "seeds": 1}}).stability
    assert whole(WHOLE).stability.held_bytes(1000, 64) == 0
    assert on.held_bytes(1000, 64) == 2 * 4 * 2 * 1000 * 64 + 3 * 8 * 1024 * 1000 + 2 * 8 * 1000**2


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "free_memory", lambda _: 10**9)
    machine.need_memory(10**9, machine.CPU, "a", "b")
    with pytest.raises(BadInput, match=r"^cluster needs 1\.1 GB of memory, and 1\.0 GB are free; train fewer$"):
        machine.need_memory(1.1e9, machine.CPU, "cluster", "train fewer")
