"""Is `src.compare` right? Verdicts of groups of seeds, drawn again and again, where the truth is known.

    python -m benchmarks.compare [DRAWS] [SEEDS] [CASE] [FIRST]

Rows of width 32 are sums of few of 64 directions; documents prefer different directions. SAEs of 128 latents with top-k
are trained on them, hundreds at a time, by a few lines of plain PyTorch. As in train, a seed gives the first weights
and the order of the rows, whatever the configuration. Of each case the verdicts of DRAWS draws are counted; no seed
comes in two draws. Beside them stands the truth, which all seeds together give.

    same        one configuration, A and B of other seeds: nothing may be decided
    sparsity    k 4 against k 16, of the same seeds: fvu_inlier must be for B, l0 for A
    truth       200 steps against 100: how many of the true directions come back must be for A
    close       200 steps against 150: the same, nearer together
    unpaired    as truth, A and B of other seeds
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from strata.comparison import documents, paired
from strata.comparison.documents import Group
from strata.comparison.paired import Items, Metric, Row, Side
from strata.corpus.read import SPLITS
from strata.rows.batches import InMemory, in_memory
from strata.run.door import one_of, run, whole_number
from strata.sae.sae import SAE

WIDTH, FEATURES, LATENTS = 32, 64, 128
DOCUMENTS, ROWS = 100, 40  # ROWS of each document
ACTIVE = 2.0  # directions in a row, on average
RECOVERED = 0.9  # a direction has come back if its cosine with a decoder row is above this
BATCH, LR = 64, 6e-3
TOGETHER = 100  # SAEs that are trained at a time
CONFIGURATIONS = {"k4": (4, 200), "k16": (16, 200), "short": (4, 100), "less": (4, 150)}  # name -> k, steps
# Case -> A, B, and whose seeds B has: those of A (0), or others (1).
CASES = {
    "same": ("k4", "k4", 1),
    "sparsity": ("k4", "k16", 0),
    "truth": ("k4", "short", 0),
    "close": ("k4", "less", 0),
    "unpaired": ("k4", "short", 1),
}
ITEMS: dict[str, Items | None] = {"fvu_inlier": "documents", "l0": "documents", "dead": None, "recovered": "features"}
Floats = NDArray[np.float64]
Sums = dict[str, tuple[Floats, Floats]]  # metric -> sums and weights of one SAE, (item,) each


@dataclass(frozen=True)
class World:
    """Rows of known ``directions`` (feature, width), and the document of each test row."""

    rows: InMemory
    row_document: NDArray[np.int64]
    directions: Tensor


def world(seed: int = 0) -> World:
    """Draw rows that are sums of about ACTIVE of FEATURES directions, which fire by Zipf's law.

    Each document multiplies the probabilities by a lognormal factor of its own, so that documents differ.
    """
    random = np.random.default_rng(seed)
    directions = random.normal(size=(FEATURES, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    zipf = np.arange(1, FEATURES + 1) ** -0.5

    parts = []
    for _ in range(DOCUMENTS):
        probability = zipf * random.lognormal(0, 1, FEATURES)
        active = random.random((ROWS, FEATURES)) < np.clip(probability * ACTIVE / probability.sum(), 0, 0.9)
        codes = np.where(active, 1 + 0.3 * np.abs(random.normal(size=active.shape)), 0)
        parts.append(codes @ directions + 0.01 * random.normal(size=(ROWS, WIDTH)))

    x = torch.from_numpy(np.concatenate(parts).astype(np.float32))
    ends = [round(share * DOCUMENTS) * ROWS for share in (0.0, 0.7, 0.8, 1.0)]
    splits: dict[str, tuple[int, int]] = dict(zip(map(str, SPLITS), pairwise(ends), strict=True))
    document = np.repeat(np.arange(DOCUMENTS), ROWS)[ends[2] :]
    return World(in_memory(x, splits), document, torch.from_numpy(directions.astype(np.float32)))


def trained(of: World, k: int, steps: int, seeds: Sequence[int]) -> list[SAE]:
    """Train an SAE for each seed, all at once: top-k, squared error, Adam, decoder rows of length 1."""
    x = of.rows.read(*of.rows.split("train"))
    randoms = [torch.Generator().manual_seed(seed) for seed in seeds]
    first = [torch.randn(LATENTS, WIDTH, generator=random) for random in randoms]
    decoder = normalize(torch.stack(first), dim=2).requires_grad_()  # (sae, latent, width)
    encoder = decoder.detach().clone().requires_grad_()
    b_enc = torch.zeros(len(seeds), 1, LATENTS, requires_grad=True)
    b_dec = x.mean(0).expand(len(seeds), 1, WIDTH).clone().requires_grad_()
    adam = torch.optim.Adam([encoder, decoder, b_enc, b_dec], lr=LR)

    for _ in range(steps):
        batch = torch.stack([x[torch.randint(len(x), (BATCH,), generator=random)] for random in randoms])
        codes = ((batch - b_dec) @ encoder.mT + b_enc).relu()  # (sae, row, latent)
        top = codes.topk(k, dim=2)
        kept = torch.zeros_like(codes).scatter(2, top.indices, top.values)
        loss = (batch - kept @ decoder - b_dec).square().sum(2).mean(1).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=2, keepdim=True)

    parts = (tensor.detach() for tensor in (encoder, b_enc[:, 0], decoder, b_dec[:, 0]))
    return [SAE(*tensors, k=k) for tensors in zip(*parts, strict=True)]


def measured(of: World, configuration: str, seeds: Sequence[int]) -> dict[int, Sums]:
    """Train and measure an SAE for each seed."""
    sums: dict[int, Sums] = {}
    for start in range(0, len(seeds), TOGETHER):
        part = seeds[start : start + TOGETHER]
        saes = trained(of, *CONFIGURATIONS[configuration], part)
        group = Group(saes)
        metrics = documents.compared(group, Group(saes[:1]), of.rows, of.row_document)
        for place, (seed, sae) in enumerate(zip(part, saes, strict=True)):
            sums[seed] = {metric.name: (metric.a.sums[place], metric.a.weights) for metric in metrics}
            sums[seed]["recovered"] = recovered(sae, of), np.ones(FEATURES)
    return sums


def recovered(sae: SAE, of: World) -> Floats:
    """Say of each true direction whether it has come back, (feature,): 1 or 0."""
    cosine = normalize(of.directions, dim=1) @ normalize(sae.decoder, dim=1).T
    return (cosine.amax(1) > RECOVERED).double().numpy()


def metrics_of(a: dict[int, Sums], b: dict[int, Sums]) -> list[Metric]:
    """Return the metrics of two groups, seed -> sums each."""

    def side(name: str, group: dict[int, Sums]) -> Side:
        sums = [of_sae[name] for of_sae in group.values()]
        return Side(np.stack([of_sae for of_sae, _ in sums]), sums[0][1], tuple(group))

    return [Metric(name, name != "recovered", side(name, a), side(name, b), items) for name, items in ITEMS.items()]


def main(draws: str = "20", seeds: str = "3", case: str = "all", first: str = "0") -> None:
    """DRAWS: how many pairs of groups a case has. SEEDS: of a group. CASE: one of those above, or all. FIRST: the first
    seed, for other draws.

    Example: python -m benchmarks.compare 20 5
    """
    torch.set_num_threads(1)
    count, size = whole_number(draws, "the number of draws", 1), whole_number(seeds, "the number of seeds", 2)
    offset, of = whole_number(first, "the first seed"), world()
    chosen = list(CASES) if one_of(case, ["all", *CASES], "the case") == "all" else [case]

    # The first half of the seeds is A's, and also B's where they are paired; the second half is B's where they are not.
    halves = [range(offset + half * count * size, offset + (half + 1) * count * size) for half in (0, 1)]
    known: dict[tuple[str, int], dict[int, Sums]] = {}
    for name in chosen:
        a, b, half = CASES[name]
        for side in ((a, 0), (b, half)):
            if side not in known:
                known[side] = measured(of, side[0], halves[side[1]])
        sums_a, sums_b = known[a, 0], known[b, half]

        groups = zip(_groups(sums_a, size), _groups(sums_b, size), strict=True)
        tables = [paired.compare(metrics_of(*pair)) for pair in groups]
        print(f"\n{name}: {a} against {b}, {count} draws of {size} seeds")
        for place, metric in enumerate(metrics_of(sums_a, sums_b)):
            _tell(metric, [table[place] for table in tables])
        decided = sum(any(row.verdict != "undecided" for row in table) for table in tables)
        print(f"  draws with a verdict in any metric: {decided} of {count}", flush=True)


def _groups(sums: dict[int, Sums], size: int) -> list[dict[int, Sums]]:
    """Share the seeds out to groups of ``size``."""
    seeds = list(sums)
    return [{seed: sums[seed] for seed in seeds[first : first + size]} for first in range(0, len(seeds), size)]


def _tell(metric: Metric, rows: Sequence[Row]) -> None:
    """Print what all seeds say of a metric, how A and B of one seed go together, and how often each verdict came."""
    a, b = metric.a.values, metric.b.values
    alike = f", r {np.corrcoef(a, b)[0, 1]:+.2f}" if paired.paired(metric) and a.std() and b.std() else ""
    counts = Counter(row.verdict for row in rows)
    print(
        f"  {metric.name:<11} A {a.mean():.4f} ± {a.std(ddof=1):.4f}, B {b.mean():.4f} ± {b.std(ddof=1):.4f}"
        f"{alike}: {', '.join(f'{word} {counts[word]}' for word in ('better', 'worse', 'undecided'))}"
    )


if __name__ == "__main__":
    run(main)
