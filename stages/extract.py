"""Stage extract: one pass of the model writes the activations of every layer."""

from functools import partial
from pathlib import Path
from typing import Any

from stages.select.layers import extracted
from strata.corpus import read
from strata.corpus.read import SPLITS
from strata.device import launch
from strata.device.machine import Machine, start
from strata.extraction import documents
from strata.extraction import extract as room
from strata.lm import sentences
from strata.lm.model import DTYPES, check_layers, load
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
    model, text = read.lm_meta(Path(lm)), read.corpus_meta(Path(corpus))
    if text.get("skipped"):
        for name in ("tokens", *map(str, numbers)) if launch.rank() == 0 else ():
            write_json(Path(target) / name / "meta.json", text)
        return
    knobs = params.load("extract", room.Extract)
    if of_tokens := model["kind"] == read.LANGUAGE:
        reading = _language(Path(lm), Path(target), numbers, model, knobs)
    else:
        reading = _documents(Path(lm), Path(corpus), Path(target), numbers, model, knobs)
    facts = {"model": read.model_facts(model), "corpus": text["sha256"], **reading.facts}
    changes_nothing = {"layers", "batch_size"} if of_tokens else {"layers"}
    belongs = {**facts, "params": knobs.model_dump(exclude=changes_nothing), "layers": numbers}
    belongs["vectors"] = text.get("vectors_sha256")  # the corpus' own hash is of its texts
    with launch.shared(resume.scratch("extract", belongs)) as work:
        if launch.rank() == 0:
            documents_of = {split: read.documents(Path(corpus), split) for split in SPLITS}
            room.keep_contexts(reading, documents_of, text["splits"], facts, work / "tokens")
        launch.barrier()
        contexts = open_contexts(work / "tokens")
        room.write_shards(reading, contexts, numbers, knobs.shard_rows, facts, work)
        if launch.rank() == 0:
            resume.deliver(work, Path(target), ["tokens", *map(str, numbers)])


def _language(lm: Path, target: Path, layers: list[int], model: dict[str, Any], knobs: room.Extract) -> room.Reading:
    device = start(params.load("machine", Machine))
    check_layers(layers, model["blocks"])
    room.check_room(target, knobs, len(layers), model["width"], model["bytes"], launch.local_world())
    launch.barrier()  # all have looked before any takes
    source, options = read.lm_path(lm)
    return room.language(load(source, DTYPES[knobs.dtype], device, **options), layers, knobs)


def _documents(
    lm: Path, corpus: Path, target: Path, layers: list[int], model: dict[str, Any], knobs: room.Extract
) -> room.Reading:
    device = start(params.load("machine", Machine))
    vectors = None if model["kind"] == read.SENTENCE else read.vectors(corpus)
    width = model["width"] if vectors is None else vectors.shape[1]
    documents.check(target, layers, model["kind"], min(knobs.tokens, read.corpus_meta(corpus)["documents"]), width)
    if vectors is not None:
        return documents.given(vectors, knobs, partial(read.name, corpus))
    source, options = read.lm_path(lm)
    return documents.sentences(
        sentences.load(source, device, DTYPES[knobs.dtype], **options), read.Texts(corpus), width, knobs
    )
