"""dictionary_learning's and sparsify's side of benchmarks.training, each in its own environment (see the requirements).

The commands are those of `benchmarks/saelens_training.py`. Both train in float32 on a CPU, whatever they are asked.
"""

import importlib.metadata
import importlib.util
import sys
import time
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.saelens_training import GROUPS, LEARNING_RATE, answers, cut_of, serve, shuffled
from strata.run.door import BadInput, run

STEPS = 10**9  # of a training that does not come to its end
ALWAYS = {"steps": STEPS, "layer": 0, "lm_name": "", "device": "cpu", "lr": LEARNING_RATE}
L0_ROWS = 4096  # that l0 is measured on


def alive(setting: dict[str, Any]) -> None:
    """These two are not timed with dead latents."""
    if setting["dead"]:
        raise ValueError("--dead is for SAELens alone")


class DictionaryLearning:
    """A trainer of dictionary_learning's, stepped as its `trainSAE` does; l0 is that of L0_ROWS rows after a piece."""

    MODULE = "dictionary_learning"

    def __init__(self, rows: Tensor, batch: int, setting: dict[str, Any]) -> None:
        from dictionary_learning import trainers  # pyright: ignore[reportMissingImports]
        from dictionary_learning.trainers.matryoshka_batch_top_k import (  # pyright: ignore[reportMissingImports]
            MatryoshkaBatchTopKTrainer,
        )

        alive(setting)
        rule, latents, l0 = setting["rule"], setting["latents"], setting["l0"]
        options = {"activation_dim": rows.shape[1], "dict_size": latents, **ALWAYS}
        settled = {"k": l0, "threshold_start_step": 0}  # as it trains for all but its first 1000 steps
        shares = [end - begin for begin, end in zip([0, *GROUPS], GROUPS, strict=False)]
        self.trainer = {
            "topk": lambda: trainers.TopKTrainer(**settled, **options),
            "batchtopk": lambda: trainers.BatchTopKTrainer(**settled, **options),
            "matryoshka": lambda: MatryoshkaBatchTopKTrainer(group_fractions=shares, **settled, **options),
            "jumprelu": lambda: trainers.JumpReluTrainer(target_l0=l0, **options),
            "relu": lambda: trainers.StandardTrainer(**options),
        }[rule]()
        self.rows, self.batches, self.step = rows, shuffled(rows, batch), 0
        sae = self.trainer.ae
        with torch.no_grad():
            if rule == "relu":
                sae.encoder.bias.sub_(cut_of(lambda x: sae.encoder(x - sae.bias), rows, l0))
            if rule == "jumprelu":
                sae.threshold.fill_(cut_of(lambda x: x @ sae.W_enc + sae.b_enc, rows, l0))

    def advance(self, steps: int) -> dict[str, float]:
        """Take so many steps."""
        before = time.perf_counter()
        for _ in range(steps):
            self.trainer.update(self.step, next(self.batches))
            self.step += 1
        seconds = time.perf_counter() - before
        with torch.no_grad():
            inside = {} if not hasattr(self.trainer.ae, "k") else {"use_threshold": False}
            codes = self.trainer.ae.encode(self.rows[:: len(self.rows) // L0_ROWS], **inside)
        return {"seconds": seconds, "l0": float((codes > 0).sum(1).float().mean())}


class Sparsify:
    """A coder of sparsify's, stepped as its `Trainer` does, which takes its activations from a running model."""

    MODULE = "sparsify"

    def __init__(self, rows: Tensor, batch: int, setting: dict[str, Any]) -> None:
        from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

        alive(setting)
        if setting["rule"] != "topk":
            raise ValueError(f"sparsify has no {setting['rule']}")
        self.coder = SparseCoder(rows.shape[1], SparseCoderConfig(num_latents=setting["latents"], k=setting["l0"]))
        if setting["options"]["optimizer"] == "signum":
            from schedulefree import ScheduleFreeWrapper  # pyright: ignore[reportMissingImports]
            from sparsify.sign_sgd import SignSGD  # pyright: ignore[reportMissingImports]

            self.optimizer = ScheduleFreeWrapper(SignSGD(self.coder.parameters(), lr=LEARNING_RATE), momentum=0.95)
            self.optimizer.train()
        else:
            self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=LEARNING_RATE)
        self.batches, self.since = shuffled(rows, batch), torch.zeros(setting["latents"], dtype=torch.long)

    def advance(self, steps: int) -> dict[str, float]:
        """Take so many steps."""
        coder, active = self.coder, []
        before = time.perf_counter()
        for _ in range(steps):
            x = next(self.batches)
            coder.set_decoder_norm_to_unit_norm()
            found = coder(x, total_variance=(x - x.mean(0)).pow(2).sum())
            fired = torch.zeros_like(self.since, dtype=torch.bool)
            fired[found.latent_indices.flatten()] = True
            found.fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.since += len(x)
            self.since[fired] = 0
            active.append(found.latent_acts)
        seconds = time.perf_counter() - before
        return {"seconds": seconds, "l0": float(torch.stack([(a > 0).sum(1).float().mean() for a in active]).mean())}


TOOLS = {"dictionary_learning": ("dictionary-learning", DictionaryLearning), "sparsify": ("eai-sparsify", Sparsify)}


def main(tool: str, rows: str, batch: str, threads: str) -> None:
    """Serve TOOL on the tensor ``rows`` of the safetensors file ROWS in batches of BATCH rows, with so many THREADS."""
    answer, (package, kind) = answers(), TOOLS[tool]
    if importlib.util.find_spec(kind.MODULE) is None:
        raise BadInput(f"{sys.executable} has no {tool}; install its file of benchmarks/requirements-* there")
    torch.set_num_threads(int(threads))
    answer({tool: importlib.metadata.version(package), "torch": torch.__version__})
    serve(kind, load_file(rows)["rows"], int(batch), answer)


if __name__ == "__main__":
    run(main)
