"""Stage evaluate@L: measure what others measure of an SAE, beside chance and beside the activations themselves."""

from pathlib import Path

from stages.select import layers
from stages.train.settings import of_layer
from strata.corpus import read
from strata.device.machine import Machine, start
from strata.evaluation import evaluate as evaluation
from strata.evaluation.knobs import Evaluate
from strata.lm.model import pieces
from strata.replication import read as replication
from strata.rows.shards import open_layer
from strata.run import params, resume
from strata.run.files import write_json
from strata.sae import disk
from strata.tasks import read as task_files
from strata.twins.load import comparable


def main(
    activations: str,
    tokens: str,
    corpus: str,
    lm: str,
    prompts: str,
    prompt_rows: str,
    sae: str,
    controls: str,
    stability: str,
    tuned: str,
    override: str,
    last: str,
    report: str,
) -> None:
    """ACTIVATIONS of a layer, TOKENS, CORPUS with its labels, the LM whose tokenizer spells the tokens, PROMPTS of
    tasks with their PROMPT_ROWS in this layer, the SAE, its twins in CONTROLS, those of other seeds in STABILITY,
    train's knobs TUNED and OVERRIDE, whether it is the LAST layer -> REPORT.

    Example: dvc repro evaluate@9
    """
    knobs = params.load("evaluate", Evaluate)
    if not knobs.run:
        write_json(Path(report), {"skipped": True})
        return

    rows, contexts = open_layer(Path(activations), Path(tokens))
    coder, _ = disk.load(Path(sae))
    twins = comparable(Path(controls))
    replicas = {seed: disk.load(folder)[0] for seed, folder in replication.replicas(Path(stability)).items()}
    _, labels = read.titles(Path(corpus))

    # The knobs with which train made this layer's SAE: some measures train SAEs like it.
    size = rows.size
    train_knobs = of_layer(rows.layer, size, Path(tuned), Path(override)).knobs
    has_tasks = rows.layer in layers.chosen(knobs.tasks.layers, rows.layer, Path(last))
    task_rows = task_files.open_rows(Path(prompt_rows)) if has_tasks else None
    tasks = task_files.tasks(Path(prompts)) if task_rows else []

    machine, seed = params.load("machine", Machine), params.load("seed", int)
    device = start(machine)
    twins = {name: twin.to(device) for name, twin in twins.items()}
    replicas = {seed: replica.to(device) for seed, replica in replicas.items()}
    spelled = _pieces(Path(lm)) if knobs.letters and rows.of_tokens else None
    source = evaluation.Source(rows, contexts, labels, train_knobs, twins, replicas, tasks, task_rows, spelled)

    inputs = {  # unfinished work of other inputs is not used
        "activations": rows.meta,
        "sae": disk.fingerprint(Path(sae)),
        "twins": {name: disk.fingerprint(Path(controls) / name) for name in twins},
        "replicas": {seed: disk.fingerprint(Path(stability) / str(seed)) for seed in replicas},
        "labels": labels,
        "prompts": task_rows.meta if task_rows else None,
        "evaluate": knobs.model_dump(),
        "train": train_knobs.model_dump(),
        "seed": seed,
        "machine": [device.type, machine.threads],
    }
    with resume.scratch(f"evaluate-{rows.layer}", inputs) as work:
        write_json(Path(report), evaluation.evaluate(coder.to(device), source, knobs, seed, work, machine.threads))


def _pieces(lm: Path) -> list[str]:
    """Return the text of each token of the language model, without loading its weights."""
    from transformers import AutoTokenizer  # imported here, because it takes two seconds

    source, options = read.lm_path(lm)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return pieces(tokenizer, range(len(tokenizer)))
