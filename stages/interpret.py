"""Stage interpret@L: find out what each latent of a layer fires on."""

import sys
from pathlib import Path

from strata.corpus import read
from strata.device.machine import Machine, start
from strata.interpretation import interpret as interpretation
from strata.interpretation import vocabulary
from strata.interpretation.knobs import Interpret
from strata.replication.read import certificates
from strata.rows.shards import open_layer
from strata.run import params, resume
from strata.run.files import need_disk, write_json, write_skipped
from strata.sae import disk


def main(
    activations: str,
    tokens: str,
    corpus: str,
    other_activations: str,
    other_tokens: str,
    other_corpus: str,
    sae: str,
    stability: str,
    lm: str,
    target: str,
    report: str,
) -> None:
    """ACTIVATIONS of a layer, TOKENS and CORPUS, the same three for OTHER texts, SAE, its STABILITY, LM -> what
    its latents fire on in TARGET, and REPORT.

    Example: dvc repro interpret@9
    """
    knobs = params.load("interpret", Interpret)
    if knobs.texts is not None:
        activations, tokens, corpus = other_activations, other_tokens, other_corpus

    if not knobs.run:
        write_skipped(Path(target), Path(report))
        return
    if knobs.texts is not None:
        sys.stderr.write(
            "interpret: latents are looked at on interpret.texts, not on the text that the SAE was trained on; dead "
            "latents are those silent there\n"
        )

    model = read.model_facts(read.lm_meta(Path(lm)))
    rows, contexts = open_layer(Path(activations), Path(tokens), model)
    seed, machine = params.load("seed", int), params.load("machine", Machine)
    coder, _ = disk.load(Path(sae))
    interpretation.check(coder, rows)
    certified = certificates(Path(stability), coder.latents)

    # Refuse before the long pass what would fail after it.
    need_disk(Path(target), round(knobs.table_bytes(coder.latents)), "interpret", "fewer interpret.examples")

    device = start(machine)
    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "sae": disk.fingerprint(Path(sae)),
        "stability": certified and {name: column.tolist() for name, column in certified.items()},
        "interpret": knobs.model_dump(),
        "seed": seed,
        "machine": [device.type, machine.threads],
    }

    with resume.scratch(f"interpret-{rows.layer}", inputs) as work:
        words = vocabulary.of_run(Path(lm), Path(corpus), rows.meta["forward"], device)
        titles, labels = read.titles(Path(corpus))
        source = interpretation.Source(rows, contexts, titles, labels, words)
        numbers = interpretation.interpret(coder, source, knobs, seed, Path(target), work, device, certified)
        write_json(Path(report), numbers)
