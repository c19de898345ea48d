"""Stage fetch: bring the language model or the text in, once and pinned."""

from pathlib import Path

from stages import params
from stages.door import BadInput, run
from stages.fetch.place import whole_folder


def main(what: str, target: str) -> None:
    """WHAT: lm or corpus; TARGET: the folder that gets it."""
    section = params.load("fetch", dict[str, dict])
    with whole_folder(Path(target)) as folder:
        if what == "lm":
            from stages.fetch import lm  # transformers takes seconds, which the text does without

            lm.fetch(params.check(section.get("lm"), lm.LM, "params.yaml: fetch.lm"), folder)
        elif what == "corpus":
            from stages.fetch import corpus

            knobs = params.check(section.get("corpus"), corpus.Corpus, "params.yaml: fetch.corpus")
            corpus.build(knobs, params.load("seed", int), folder)
        else:
            raise BadInput(f"fetch brings lm or corpus, not {what}")


if __name__ == "__main__":
    run(main)
