"""Stage extract: one pass of the model writes the activations of every layer."""

from pathlib import Path

from stages import launch, params, resume
from stages.door import run
from stages.extract import extract as room
from stages.extract.shards import Contexts
from stages.fetch import read
from stages.fetch.read import SPLITS
from stages.files import read_json, write_json
from stages.lm import DTYPES, check_layers, load
from stages.machine import Machine, start


@launch.several
def main(lm: str, corpus: str, target: str) -> None:
    """LM and CORPUS: what fetch wrote; TARGET: the folder that gets `<layer>/` for each layer and `tokens/`."""
    layers = params.load("layers", list[int])
    model, text = read.lm_meta(Path(lm)), read.corpus_meta(Path(corpus))
    if text.get("skipped"):
        for name in ("tokens", *map(str, layers)) if launch.rank() == 0 else ():
            write_json(Path(target) / name / "meta.json", text)
        return
    device = start(params.load("machine", Machine))
    knobs = params.load("extract", room.Extract)
    check_layers(layers, model["blocks"])
    room.check_room(Path(target), knobs, len(layers), model["width"], model["bytes"], launch.local_world())
    launch.barrier()  # all have looked before any takes
    source, options = read.lm_path(Path(lm))
    loaded = load(source, DTYPES[knobs.dtype], device, **options)
    facts = {"model": read.model_facts(model), "corpus": text["sha256"], "hook": knobs.hook, "forward": knobs.dtype}
    belongs = {**facts, "params": knobs.model_dump(exclude={"batch_size"}), "layers": layers}
    with launch.shared(resume.scratch("extract", belongs)) as work:
        tokens = work / "tokens"
        if launch.rank() == 0 and not (tokens / "meta.json").exists():
            documents = {split: read.documents(Path(corpus), split) for split in SPLITS}
            counts = {split: text["splits"][split] for split in SPLITS}
            write_json(tokens / "meta.json", {**facts, **room.write_contexts(documents, counts, loaded, knobs, tokens)})
        launch.barrier()
        contexts = Contexts(tokens, read_json(tokens / "meta.json"))
        room.write_shards(loaded, contexts, layers, knobs, facts, work)
        if launch.rank() == 0:
            resume.deliver(work, Path(target), ["tokens", *map(str, layers)])


if __name__ == "__main__":
    run(main)
