"""SAELens's side of benchmarks.training and .quality, in its own environment (`benchmarks/requirements-saelens.txt`).

Reads one JSON command a line from stdin, and answers each by one JSON line on stdout (all other output goes to stderr):

    {"build": {…}, "as": name}      {}                          a fresh SAETrainer; the fields are those of `Peer`
    {"run": steps, "as": name}      {"seconds": …, "l0": …}     the time of so many steps, the mean l0 of their batches
    {"keep": [name, …]}             {}                          forget the others
    {"train": {…}, "to": path}      {}                          a whole training by `train`; its weights go to the path

A command that the tool refuses is answered by {"error": text}. Between commands the process sleeps on the pipe.
"""

import gc
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from strata.run.door import BadInput, run

Answer = Callable[[dict[str, Any]], None]
LEARNING_RATE = 1e-6  # small, so that l0 stays what it was set to; the arithmetic of a step does not depend on it
SETTLE_ROWS = 8192  # rows that a cut is taken from, spread over all: neighbours are of one document
DEAD_AFTER = 1_000_000  # steps without firing; so many that only latents which are marked as dead are
GROUPS = [0.125, 0.25, 0.5, 1.0]  # matryoshka: shares of the latents
ARCHITECTURES = {
    "topk": "topk",
    "batchtopk": "batchtopk",
    "matryoshka": "matryoshka_batchtopk",
    "jumprelu": "jumprelu",
    "relu": "standard",
    "gated": "gated",
}


def cut_of(preactivations: Callable[[Tensor], Tensor], rows: Tensor, l0: int, block: int = 2048) -> float:
    """The value that ``l0`` pre-activations a row exceed on the average over SETTLE_ROWS of ``rows``.

    Exact for them unless a block holds more than twice its share.
    """
    best = torch.empty(0)
    rows = rows[:: max(1, len(rows) // SETTLE_ROWS)]
    for x in rows.split(block):
        h = preactivations(x).float().flatten()
        best = torch.cat([best, h.topk(min(2 * l0 * len(x), len(h)), sorted=False).values])
    return float(best.topk(l0 * len(rows), sorted=False).values.min())


def shuffled(rows: Tensor, batch: int, seed: int = 0) -> Iterator[Tensor]:
    """Endless epochs of ``rows`` in random batches; what does not fill a last batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for at in range(0, len(rows) - batch + 1, batch):
            yield rows[order[at : at + batch]]


def built(rows: Tensor, setting: dict[str, Any], options: dict[str, Any]) -> Any:
    """A fresh SAE of SAELens's in training, which starts at ``l0`` active latents a row where it can be told to."""
    from sae_lens.registry import get_sae_training_class  # pyright: ignore[reportMissingImports]

    rule, latents, l0 = setting["rule"], setting["latents"], setting["l0"]
    options = dict(options)
    if rule in ("topk", "batchtopk", "matryoshka"):
        options["k"] = l0
    if rule == "matryoshka":
        options["matryoshka_widths"] = [round(share * latents) for share in GROUPS]
    if rule == "jumprelu":
        options |= {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": l0}
    kind, config = get_sae_training_class(ARCHITECTURES[rule])
    sae = kind(config(d_in=rows.shape[1], d_sae=latents, **options))
    if options.get("use_sparse_activations") and not hasattr(sae.activation_fn, "use_sparse_activations"):
        raise ValueError(f"{type(sae.activation_fn).__name__} ignores use_sparse_activations: its codes are dense")
    with torch.no_grad():
        if rule in ("jumprelu", "relu"):
            cut = cut_of(lambda x: sae.encode_with_hidden_pre(x)[1], rows, l0)
            if rule == "jumprelu":
                sae.threshold.fill_(cut)
            else:
                sae.b_enc.sub_(cut)
    return sae


class Peer:
    """A real SAETrainer, stepped as its own `fit` does, without logging and checkpoints.

    ``setting``: rule, latents, l0, dead (indices of the latents to keep dead), and options: autocast, compile and what
    else SAELens's own configuration of the SAE knows.
    """

    def __init__(self, rows: Tensor, batch: int, setting: dict[str, Any]) -> None:
        from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
        from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

        options = dict(setting["options"])
        autocast, compiled = options.pop("autocast"), options.pop("compile")
        sae = built(rows, setting, options)
        if compiled:  # what compile_sae does in SAELens's runner
            sae.training_forward_pass = torch.compile(sae.training_forward_pass)
        self.trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=10**12,
                train_batch_size_samples=batch,
                lr=LEARNING_RATE,
                lr_end=LEARNING_RATE,
                autocast=autocast,
                dead_feature_window=DEAD_AFTER,
            ),
            sae,
            shuffled(rows, batch),
        )
        self.dead = torch.tensor(setting["dead"], dtype=torch.long)

    def advance(self, steps: int) -> dict[str, float]:
        """Take so many steps."""
        trainer = self.trainer
        fired, samples = trainer.act_freq_scores.double().sum(), trainer.n_frac_active_samples
        before = time.perf_counter()
        for _ in range(steps):
            trainer.n_forward_passes_since_fired[self.dead] = DEAD_AFTER + 1
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps += 1
        seconds = time.perf_counter() - before
        fired = trainer.act_freq_scores.double().sum() - fired
        return {"seconds": seconds, "l0": float(fired) / (trainer.n_frac_active_samples - samples)}


def train(rows: Tensor, batch: int, setting: dict[str, Any], target: str) -> None:
    """Train by SAELens's own `fit`, with its defaults but for ``setting``; write the weights of its inference model.

    ``setting``: rule, latents, l0, lr, decay (share of the steps over which lr falls to 0 at the end), tokens, seed,
    autocast (to bfloat16), window: the steps after which a silent latent counts as dead, and perhaps options of
    SAELens's configuration of the SAE.
    """
    from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

    torch.manual_seed(setting["seed"])  # noqa: TID251, SAELens draws its first weights from the global generator
    sae = built(rows, setting, setting.get("options", {}))
    config = SAETrainerConfig(
        total_training_samples=setting["tokens"],
        train_batch_size_samples=batch,
        lr=setting["lr"],
        lr_end=setting["lr"] / 10,  # what its runner fills in; a constant schedule does not look at it
        lr_decay_steps=round(setting["decay"] * setting["tokens"] / batch),
        adam_beta2=setting["beta2"],
        autocast=setting["autocast"],
        dead_feature_window=setting["window"],
    )
    SAETrainer(config, sae, shuffled(rows, batch, setting["seed"])).fit()
    tensors = sae.state_dict()
    sae.process_state_dict_for_saving_inference(tensors)
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, target)


def serve(make: Callable[[Tensor, int, dict[str, Any]], Any], rows: Tensor, batch: int, answer: Answer) -> None:
    """Do what stdin says until it ends. ``make``: a peer of rows, batch and setting."""
    peers: dict[str, Any] = {}
    for line in sys.stdin:
        command, found = json.loads(line), {}
        try:
            if "build" in command:
                peers[command["as"]] = make(rows, batch, command["build"])
            elif "run" in command:
                found = peers[command["as"]].advance(command["run"])
            elif "train" in command:
                train(rows, batch, command["train"], command["to"])
            else:
                peers = {name: peer for name, peer in peers.items() if name in command["keep"]}
                gc.collect()
        except Exception as error:  # whatever the tool raises is a finding, and the next setting may work
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answer(found)


def answers() -> Answer:
    """What answers on the true stdout; all else that is printed goes to stderr from now on."""
    stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda found: print(json.dumps(found), file=stdout)


def main(tool: str, rows: str, batch: str, threads: str) -> None:
    """Serve TOOL, saelens, on the tensor ``rows`` of the file ROWS in batches of BATCH rows, with so many THREADS."""
    answer = answers()
    if importlib.util.find_spec("sae_lens") is None:
        raise BadInput(f"{sys.executable} has no {tool}; install benchmarks/requirements-saelens.txt there")
    torch.set_num_threads(int(threads))
    import sae_lens  # noqa: F401  # pyright: ignore[reportMissingImports]

    answer({"sae_lens": importlib.metadata.version("sae-lens"), "torch": torch.__version__})
    serve(Peer, load_file(rows)["rows"], int(batch), answer)


if __name__ == "__main__":
    run(main)
