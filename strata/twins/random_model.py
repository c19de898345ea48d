"""Activations of a model of the same shape with random weights, on the tokens that the real model has read.

SAEs of such models have been found to score much like those of trained models ("Sparse autoencoders can interpret
randomly initialized transformers", arXiv 2501.17727). So what an SAE shows is due to the model's own learning only as
far as it goes beyond this control.
"""

from pathlib import Path

import torch
from torch import nn

from strata.extraction import extract
from strata.extraction.knobs import Extract
from strata.lm.model import LanguageModel
from strata.rows.shards import Activations, Contexts, open_activations


@torch.no_grad()
def redraw(model: nn.Module, generator: torch.Generator) -> None:
    """Draw each matrix of ``model`` anew, in place, from a normal distribution of the mean and spread that it had.

    So embeddings, weights and head keep their size. Vectors, such as the factors of norms, stay. ``generator``: on the
    CPU, so that the model is the same on every device.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            old = parameter.float()
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.copy_(old.mean() + old.std() * drawn)


def activations(
    lm: LanguageModel, contexts: Contexts, of_real: Activations, knobs: Extract, seed: int, work: Path
) -> Activations:
    """Give ``lm`` random weights, and write its activations on ``contexts`` into ``work``.

    ``of_real``: the real model's, which say the layer and the hook. Shards that a killed run left whole are not written
    again.
    """
    redraw(lm.model, torch.Generator().manual_seed(seed))
    layer = of_real.layer
    source = extract.language(lm, [layer], knobs)
    model = of_real.meta["model"]  # its fingerprint would say that SAEs of these rows belong to the real model
    model = {**model, "fingerprint": f"{model['fingerprint']}-random-{seed}"}
    facts = {"model": model, "corpus": of_real.meta["corpus"], **source.facts}
    extract.write_shards(source, contexts, [layer], knobs.shard_rows, facts, work)
    return open_activations(work / str(layer))
