"""Our side of the comparison with `sae_lens.synthetic`: true features, what we draw of them, and our scores."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn.functional import normalize

from benchmarks.synthetic_oracle import Counts
from strata.run.door import run
from strata.run.files import write_tensors
from strata.sae.sae import SAE, Codes
from strata.synthetic.config import Config
from strata.synthetic.rows import Labelled, drawn
from strata.synthetic.scores import of_sae
from strata.synthetic.truth import draw, orthogonalised, zipf

ROWS, SCORED = 100_000, 8192  # rows that are counted, and the first of them, on which scores are compared
LATENTS, NOISE, THRESHOLD = 512, 0.04, 3.0  # of the dictionary that is scored: rough copies of true directions
SMALL = 300, 48  # features and width on which orthogonalisation is compared


def recorded(blocks: Iterator[Labelled], counts: Counts) -> Iterator[Labelled]:
    """The same blocks, counted as they go by."""
    for block in blocks:
        counts.add(block.activations.dense())
        yield block


@torch.inference_mode()
def main(target: str) -> None:
    """Write TARGET, a safetensors file for benchmarks.synthetic_oracle."""
    config, random = Config(), torch.Generator().manual_seed(0)
    truth = draw(config, random)
    rows = drawn(truth, ROWS, 1, 1, seed=1)

    # A dictionary with errors of every kind: rough directions, some features twice, most features missing.
    chosen = torch.randint(1024, (LATENTS,), generator=random)
    rough = normalize(truth.directions[chosen] + NOISE * torch.randn(LATENTS, config.width, generator=random), dim=1)
    threshold = torch.full((LATENTS,), THRESHOLD)
    threshold[-1] = 1e3  # it never fires
    sae = SAE(rough, torch.zeros(LATENTS), rough, truth.bias, threshold=threshold)

    counts, first = Counts.empty(config.features), []
    for block in recorded(rows.labelled(0, ROWS), counts):
        if len(first) * len(block.x) < SCORED:
            first.append(block)
    x = torch.cat([block.x for block in first])
    codes: Codes = sae.encode(x)
    found = of_sae(sae, truth.directions, first)

    start = normalize(torch.randn(*SMALL, generator=random), dim=1)
    facts = {"exponent": config.exponent, "most": config.most, "least": config.least, "roots": config.roots}
    facts |= {"steps": config.orthogonal_steps, "rate": config.orthogonal_rate}
    tensors = {
        "directions": truth.directions, "probability": truth.probability, "mean": truth.mean, "bias": truth.bias,
        "deviation": truth.deviation, "loadings": truth.loadings, "parent": truth.trees.parent,
        "exclusive": truth.trees.exclusive, "zipf": zipf(config.features, config.exponent, config.most, config.least),
        "start": start, "orthogonal": orthogonalised(start, config.orthogonal_steps, config.orthogonal_rate),
        "x": x, "activations": torch.cat([block.activations.dense() for block in first]),
        "decoder": rough, "codes": codes.dense(), "reconstruction": sae.decode(codes),
        "rows": torch.tensor(ROWS),
        **{f"counts.{name}": value for name, value in vars(counts).items()},
        **{f"config.{name}": torch.tensor(value, dtype=torch.float64) for name, value in facts.items()},
        **{f"score.{name}": torch.tensor(value, dtype=torch.float64) for name, value in asdict(found).items()},
    }  # fmt: skip
    write_tensors(Path(target), {name: tensor.contiguous() for name, tensor in tensors.items()})


if __name__ == "__main__":
    run(main)
