"""Stage extract: run the model over the text once, and write the activations of every layer."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from stages.select.layers import extracted
from strata import sentences
from strata.corpus import read
from strata.corpus.read import SPLITS
from strata.device import launch
from strata.device.machine import Machine, start
from strata.extraction import documents
from strata.extraction import extract as extraction
from strata.lm.model import DTYPES, check_layers, forward_dtype, load, loaded_bytes
from strata.rows.shards import open_contexts
from strata.run import params, resume
from strata.run.files import write_json


@launch.several
def main(lm: str, corpus: str, layers: str, target: str) -> None:
    """LM and CORPUS: what fetch wrote; LAYERS: what select wrote of the layers to store; TARGET: the folder that gets
    `<layer>/` for each of them, and `tokens/`.

    Example: dvc repro extract
    """
    numbers = extracted(Path(layers))
    outputs = ["tokens", *map(str, numbers)]
    model, text = read.lm_meta(Path(lm)), read.corpus_meta(Path(corpus))
    if text.get("skipped"):
        for name in outputs if launch.rank() == 0 else ():
            write_json(Path(target) / name / "meta.json", text)
        return

    machine = params.load("machine", Machine)
    device = start(machine)
    knobs = params.load("extract", extraction.Extract)
    knobs = knobs.model_copy(update={"dtype": forward_dtype(knobs.dtype, device)})  # auto: what this device is fast in
    of_tokens = model["kind"] == read.LANGUAGE
    if of_tokens:
        row_source = _language(Path(lm), Path(target), numbers, model, knobs, device)
    else:
        row_source = _documents(Path(lm), Path(corpus), Path(target), numbers, model, knobs, device)

    facts = {"model": read.model_facts(model), "corpus": text["sha256"], **row_source.facts}
    inputs = {  # unfinished work of other inputs is not used
        **facts,
        "machine": [device.type, machine.threads],
        "params": knobs.model_dump(exclude={"layers", "batch_size"} if of_tokens else {"layers"}),
        "layers": numbers,
        "vectors": text.get("vectors_sha256"),  # the corpus' own hash covers its texts alone
    }
    with launch.shared(resume.scratch("extract", inputs)) as work:
        if launch.rank() == 0:
            documents_of = {split: read.documents(Path(corpus), split) for split in SPLITS}
            extraction.keep_contexts(row_source, documents_of, text["splits"], facts, work / "tokens")
        launch.barrier()  # the contexts are there before any process reads them

        contexts = open_contexts(work / "tokens")
        extraction.write_shards(row_source, contexts, numbers, knobs.shard_rows, facts, work)
        if launch.rank() == 0:
            resume.deliver(work, Path(target), outputs)


def _language(
    lm: Path, target: Path, layers: list[int], model: dict[str, Any], knobs: extraction.Extract, device: torch.device
) -> extraction.RowSource:
    """Load a language model, whose rows are tokens. ``model``: its meta.json.

    Raises BadInput, before anything is loaded, for layers that the model lacks and for too little disk or memory.
    """
    check_layers(layers, model["blocks"])
    weights = loaded_bytes(model, knobs.dtype)
    extraction.check_room(target, knobs, len(layers), model["width"], weights, launch.local_world())
    launch.barrier()  # every process has seen the free memory before any of them loads the model

    source, options = read.lm_path(lm)
    return extraction.language(load(source, DTYPES[knobs.dtype], device, **options), layers, knobs)


def _documents(
    lm: Path,
    corpus: Path,
    target: Path,
    layers: list[int],
    model: dict[str, Any],
    knobs: extraction.Extract,
    device: torch.device,
) -> extraction.RowSource:
    """Load a sentence model, or the vectors that the corpus brought; either way rows are documents."""
    vectors = None if model["kind"] == read.SENTENCE else read.vectors(corpus)
    width = model["width"] if vectors is None else vectors.shape[1]
    rows = min(knobs.tokens, read.corpus_meta(corpus)["documents"])
    documents.check(target, layers, model["kind"], rows, width)
    if vectors is not None:
        return documents.own_vectors(vectors, knobs, partial(read.name, corpus))

    source, options = read.lm_path(lm)
    encoder = sentences.load(source, device, DTYPES[knobs.dtype], **options)
    return documents.sentences(encoder, read.Texts(corpus), width, knobs)
