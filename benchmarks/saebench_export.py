"""Our side of the comparison with SAEBench and sae-probes: rows, means of documents, splits, a meta-SAE, and what
evaluate measures on them."""

from pathlib import Path

import numpy as np
import torch

from strata.corpus import read
from strata.device.machine import CPU
from strata.evaluation import pooled, probing
from strata.evaluation.core import core
from strata.evaluation.meta import explained, meta_sae
from strata.evaluation.redundancy import nearest
from strata.measure.quality import reconstruction
from strata.rows.shards import open_activations, open_contexts
from strata.run import params
from strata.run.door import run
from strata.run.files import write_json, write_tensors
from strata.sae import disk
from strata.training.knobs import knobs_of

TOKENS, KS, SEEDS, META_STEPS = 64, (1, 2, 5), range(5), 200


def main(activations: str, tokens: str, corpus: str, sae: str, target: str) -> None:
    """Write tensors.safetensors, ours.json and the folder meta/ to TARGET, from a layer's ACTIVATIONS, their TOKENS,
    the CORPUS and the layer's SAE."""
    rows, contexts, folder = open_activations(Path(activations)), open_contexts(Path(tokens)), Path(target)
    coder, config = disk.load(Path(sae))
    _, labels = read.titles(Path(corpus))
    row_document = np.concatenate([contexts.rows(split)[1] for split in read.SPLITS])
    whole, counts = np.unique(row_document, return_counts=True)
    chosen = np.array([n for n, rows in zip(whole, counts, strict=True) if labels[n] is not None and rows >= TOKENS])

    # What both tools probe: documents by their first TOKENS rows, (document, token, width), and their means.
    place = pooled.places(row_document, chosen, TOKENS)
    parts = pooled.Parts(rows, place, CPU)
    means = pooled.pooled({"sae": coder}, parts, len(chosen))
    x = torch.cat([block[at.argsort(stable=True)] for block, at in parts])
    where = torch.cat([at.sort(stable=True).values for _, at in parts])
    tensors = {
        "documents": x[where.argsort(stable=True)].view(len(chosen), TOKENS, rows.width),
        "test": torch.cat(list(rows.blocks(*rows.split("test")))).float(),
        "residual_means": torch.from_numpy(means["residual"]),
        "sae_means": torch.from_numpy(means["sae"]),
    }

    # Our side of the probes, on splits that the oracle is given, too.
    names = [str(labels[n]) for n in chosen]
    tasks = []
    for number, label in enumerate(probing.commonest(names, 8, 16)):
        for seed in SEEDS:
            of = probing.split(np.array(names) == label, 0.3, np.random.default_rng([seed, number]))
            name = f"{number}.{seed}"
            tensors |= {f"train.{name}": torch.from_numpy(of.train), f"test.{name}": torch.from_numpy(of.test)}
            for what, columns in means.items():
                order = probing.strongest(columns[of.train], of.y_train, max(KS))
                found = {str(k): probing.accuracy(columns[:, order[:k]], of) for k in KS}
                tasks.append({"split": name, "what": what, "strongest": order.tolist(), "accuracy": found})

    # A small SAE of the decoder, for the oracle to judge.
    knobs = knobs_of(params.load("train", dict), {}, {}, rows.layer, rows.size)
    small = meta_sae(coder.decoder, knobs, 0, META_STEPS)
    disk.save(folder / "meta", small, config["metadata"])

    # Our numbers.
    test = tensors["test"]
    documents = contexts.rows("test")[1]
    ours = core(coder, rows, documents, np.random.default_rng(0)) or {}
    quality = reconstruction(coder.reconstruct, [test], rows.scale, rows.median_norm)
    numbers = {name: one["value"] for name, one in ours.items()}
    numbers |= {name: quality[name] for name in ("l0", "cosine", "fvu")}
    numbers["squared_error"] = quality["mse"] * rows.width / rows.scale**2
    numbers["nearest_decoder"] = float(nearest(coder.decoder).mean())
    numbers["nearest_encoder"] = float(nearest(coder.encoder).mean())
    numbers["meta_explained"] = explained(small, coder.decoder)

    write_tensors(folder / "tensors.safetensors", tensors)
    write_json(folder / "ours.json", {"numbers": numbers, "tasks": tasks, "layer": rows.layer})


if __name__ == "__main__":
    run(main)
