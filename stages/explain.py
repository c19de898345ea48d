"""Stage explain@L: explain the most important latents of a layer in words."""

from pathlib import Path

from stages.select.layers import chosen
from strata.corpus import read
from strata.device.machine import Machine, start
from strata.interpretation import explain, explaining, vocabulary
from strata.interpretation import read as interpretation
from strata.interpretation.explain_knobs import Explain
from strata.rows.shards import open_layer
from strata.run import params, resume
from strata.run.files import write_json, write_skipped


def main(
    activations: str,
    tokens: str,
    corpus: str,
    other_activations: str,
    other_tokens: str,
    other_corpus: str,
    lm: str,
    latents: str,
    last: str,
    target: str,
    report: str,
) -> None:
    """ACTIVATIONS of a layer, TOKENS and CORPUS, the same three for the OTHER texts of interpret.texts, LM, LATENTS,
    and whether the layer is the LAST one -> its names and explanations, those in words among them, in TARGET, REPORT.

    Example: dvc repro explain@9
    """
    if not interpretation.interpreted(Path(latents)):
        write_skipped(Path(target), Path(report), "interpret was skipped")
        return
    if not interpretation.of_stored_rows(Path(latents)):
        activations, tokens, corpus = other_activations, other_tokens, other_corpus

    model = read.model_facts(read.lm_meta(Path(lm)))
    rows, contexts = open_layer(Path(activations), Path(tokens), model)
    interpreted = interpretation.open_latents(Path(latents))
    explaining.check(interpreted, contexts)

    knobs = params.load("explain", Explain)
    knobs = knobs.model_copy(update={"layers": chosen(knobs.layers, rows.layer, Path(last))})
    if not explaining.asked(interpreted, knobs):
        write_json(Path(report), explaining.hand_on(interpreted, knobs, Path(target)))
        return

    explain.check(knobs)
    seed, machine = params.load("seed", int), params.load("machine", Machine)
    device = start(machine)
    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "latents": interpreted.meta,
        "explain": knobs.model_dump(),
        "seed": seed,
        "machine": [device.type, machine.threads],
    }

    with resume.scratch(f"explain-{rows.layer}", inputs) as work:
        words = vocabulary.of_run(Path(lm), Path(corpus), rows.meta["forward"], device)
        if words.lm and knobs.model == "lm":
            explain.check_room(interpreted.meta["interpret"]["window"], words.lm)
        numbers = explaining.explain_latents(interpreted, contexts, words, knobs, seed, Path(target), work)
        write_json(Path(report), numbers)
