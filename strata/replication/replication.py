"""Train the layer's SAE again with other seeds, certify its latents, and pool those that come again."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strata.lm.model import LanguageModel
from strata.measure.quality import firing_counts
from strata.replication import cofiring, pooled
from strata.replication.certificate import Dictionary, Thresholds, certificates, compared, summary
from strata.replication.knobs import Stability
from strata.replication.pooled import Chosen
from strata.rows.batches import blocks, check_held_out
from strata.rows.shards import Activations, Contexts
from strata.run import resume
from strata.run.door import BadInput
from strata.run.progress import each
from strata.sae.sae import SAE
from strata.seeds import generator
from strata.splicing.held_out import held_out
from strata.training import training
from strata.training.knobs import Train
from strata.verdict.targets import Targets

Load = Callable[[], LanguageModel]


@dataclass(frozen=True)
class Source:
    """The rows of a layer, the contexts that they are from, and how train makes that layer's SAE."""

    activations: Activations
    contexts: Contexts
    train: Train
    targets: Targets


@dataclass(frozen=True)
class Pooled:
    """The dictionary of the latents that come again. ``density``: (latent,) the share of all rows on which it fires."""

    sae: SAE
    chosen: Chosen
    density: Tensor


@dataclass(frozen=True)
class Replicated:
    """The result. ``saes``: seed -> the SAE trained with it, and ``densities`` likewise: seed -> (latent,).
    ``certificates``: the columns of `latents.parquet`. ``pooled``: None where no latent comes again, or none was asked
    for. ``report``: the numbers of `reports/stability/<L>.json`.
    """

    saes: dict[int, SAE]
    densities: dict[int, Tensor]
    certificates: dict[str, Any]
    pooled: Pooled | None
    report: dict[str, Any]


def replicate(
    sae: SAE, source: Source, knobs: Stability, seed: int, lm: Load | None, work: Path | None = None
) -> Replicated:
    """Train with the seeds that follow ``seed``, as many as ``knobs.seeds``, and compare ``sae`` with each result.

    The device of ``sae`` does the work. ``lm``: called when the language model is needed; None without one. ``work``: a
    folder where trainings and results are kept. A stage that was killed goes on from there.
    """
    activations, device = source.activations, sae.decoder.device
    layer = activations.layer

    def kept_at(name: str) -> Path | None:
        return work / name if work else None

    def rows(split: str, most: int | None = None) -> Iterator[Tensor]:
        first, end = activations.split(split)
        return blocks(activations, first, end if most is None else min(end, first + most), device)

    # Refuse before the trainings what would fail after them.
    check_held_out(activations, "test")
    own = Dictionary(sae, cofiring.codes(sae, rows("test", knobs.rows)))
    held_out_fired, held_out_rows = cofiring.fired(own.z), cofiring.size(own.z)[0]
    if not held_out_fired.any():
        raise BadInput(
            f"no latent of layer {layer} fires on the {held_out_rows} held-out rows, so none can come again; train an "
            "SAE whose latents fire, or set stability.seeds: 0"
        )

    # The trainings. The settings of an SAE that are not tensors follow from the knobs, so they are those of `sae`.
    def retrained(other_seed: int) -> dict[str, Tensor]:
        state = kept_at(f"training-{other_seed}")
        fitted = training.train(activations, source.train, source.targets, other_seed, work=state, device=device)
        return {name: tensor.cpu() for name, tensor in fitted.best.tensors().items()}

    saes: dict[int, SAE] = {seed: sae}
    for other_seed in range(seed + 1, seed + 1 + knobs.seeds):
        tensors = resume.once_tensors(kept_at(f"sae-{other_seed}.safetensors"), partial(retrained, other_seed))
        saes[other_seed] = SAE(**tensors, **sae.settings()).to(device)

    # How often each latent fires on all stored rows.
    def counted(counted_sae: SAE) -> dict[str, Tensor]:
        return {"fired": firing_counts(counted_sae, blocks(activations, 0, activations.rows, device))}

    fired = {
        number: resume.once_tensors(kept_at(f"fired-{number}.safetensors"), partial(counted, replica))["fired"]
        for number, replica in saes.items()
    }

    # Compare with each training, on the same held-out rows.
    least = Thresholds(knobs.cosine, knobs.cofiring)

    def against(other_seed: int) -> dict[str, Tensor]:
        other = Dictionary(saes[other_seed], cofiring.codes(saes[other_seed], rows("test", knobs.rows)))
        random = generator(seed, "stability", layer, other_seed)
        return compared(own, other, drawn_rows(activations, sae.latents, random), least, random)

    by_seed = [
        resume.once_tensors(kept_at(f"compared-{other_seed}.safetensors"), partial(against, other_seed))
        for other_seed in each(list(saes)[1:], "compare", "seeds")
    ]
    report: dict[str, Any] = {
        "layer": layer,
        "latents": sae.latents,
        "seeds": list(saes)[1:],
        "rows": held_out_rows,
        "thresholds": {"cosine": knobs.cosine, "cofiring": knobs.cofiring},
        "firing": int((held_out_fired > 0).sum()),
        **summary(by_seed, held_out_fired),
    }

    pool = None
    if knobs.pool:
        pool, report["pooled"] = _pooled(saes, fired, source, knobs, seed, lm, kept_at)
    densities = {number: counts.double() / activations.rows for number, counts in fired.items() if number != seed}
    return Replicated(
        saes={number: replica for number, replica in saes.items() if number != seed},
        densities=densities,
        certificates=certificates(by_seed, held_out_fired, held_out_rows),
        pooled=pool,
        report=report,
    )


def drawn_rows(activations: Activations, count: int, random: torch.Generator) -> Tensor:
    """Draw ``count`` training rows, with replacement, and subtract the mean of all: (count, width), on the CPU."""
    first, end = activations.split("train")
    places, order = torch.randint(first, end, (count,), generator=random).sort()
    rows = torch.cat([activations.read(place, place + 1) for place in places.tolist()]).float()
    return (rows - activations.mean.cpu())[order.argsort()]


def _pooled(
    saes: Mapping[int, SAE],
    fired: Mapping[int, Tensor],
    source: Source,
    knobs: Stability,
    seed: int,
    lm: Load | None,
    kept_at: Callable[[str], Path | None],
) -> tuple[Pooled | None, dict[str, Any]]:
    """Make the pooled dictionary, and one of latents drawn at random; judge both beside the layer's SAE."""
    activations, everything = source.activations, list(saes.values())
    own = everything[0]
    device = own.decoder.device
    chosen = pooled.pool([replica.decoder for replica in everything], knobs.cosine)
    if not len(chosen):
        return None, {"latents": 0, "why": "no latent comes again"}

    def rows(split: str) -> Iterator[Tensor]:
        return blocks(activations, *activations.split(split), device)

    validation, train_rows = partial(rows, "validation"), partial(rows, "train")
    active, count = 0, 0
    for block in validation():
        active += int(own.encode(block.float()).active().sum())
        count += len(block)

    random = np.random.default_rng(generator(seed, "pooled", activations.layer).initial_seed())
    control = pooled.drawn([(fired[number] > 0).numpy() for number in saes], len(chosen), random)

    def made(which: Chosen) -> dict[str, Tensor]:
        made_sae = pooled.dictionary(everything, which, validation, train_rows, active / count)
        return {name: tensor.cpu() for name, tensor in made_sae.tensors().items()}

    candidates = {"before": own}
    for name, which in {"pooled": chosen, "drawn": control}.items():
        tensors = resume.once_tensors(kept_at(f"{name}.safetensors"), partial(made, which))
        settings = own.settings()
        if own.k is not None:
            settings["k"] = min(own.k, len(which))
        candidates[name] = SAE(**tensors, **settings).to(device)

    def judged() -> dict[str, Any]:
        reconstruct = {name: candidate.reconstruct for name, candidate in candidates.items()}
        hook, model = activations.meta["hook"], lm() if lm else None
        test, predictions = held_out(reconstruct, activations, source.contexts, hook, model, knobs.ce_tokens, device)
        return {"test": test, "ce_tokens": len(predictions.document)}

    def counted(name: str) -> dict[str, Tensor]:
        return {"fired": firing_counts(candidates[name], blocks(activations, 0, activations.rows, device))}

    result = resume.once_json(kept_at("judged.json"), judged)
    counts = {"before": fired[seed]}
    for name in ("pooled", "drawn"):
        counts[name] = resume.once_tensors(kept_at(f"{name}-fired.safetensors"), partial(counted, name))["fired"]
    for name, latent_rows in counts.items():
        result["test"][name] |= {"dead": float((latent_rows == 0).double().mean()), "latents": len(latent_rows)}

    pool = Pooled(candidates["pooled"], chosen, counts["pooled"].double() / activations.rows)
    trainings = np.bincount(chosen.trainings, minlength=len(saes) + 1)
    own_latents = int((chosen.training == 0).sum())
    return pool, {"latents": len(chosen), "own": own_latents, "trainings": trainings.tolist(), **result}
