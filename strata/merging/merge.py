"""Make a dictionary smaller, and say what that costs, beside dropping latents instead."""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strata.device.machine import CPU, put
from strata.families.read import Clusters
from strata.interpretation.read import Latents
from strata.lm.model import LanguageModel
from strata.measure.metrics import sums as sums_of
from strata.measure.quality import Quality, firing_counts
from strata.merging.encoder import encoded, ordinary
from strata.merging.groups import Groups, alone, families, led, strongest, weighted, whole
from strata.merging.knobs import Merge
from strata.merging.moments import Floats, Moments, moments
from strata.merging.refit import refit, start
from strata.merging.rows import blocks
from strata.rows.batches import blocks as shared_blocks
from strata.rows.shards import Activations, Contexts
from strata.run import resume
from strata.run.door import BadInput
from strata.sae.sae import SAE, Codes, summed
from strata.splicing.held_out import held_out

Load = Callable[[], LanguageModel]
TOLD = 10  # groups that the report names


@dataclass(frozen=True)
class Source:
    """What a layer's dictionary is merged on: its rows, their codes, its clusters."""

    activations: Activations
    contexts: Contexts
    latents: Latents
    clusters: Clusters


@dataclass(frozen=True)
class Merged:
    """The smaller ``sae``; ``groups``: where each latent went; ``density``: (merged,) share of rows it is active on."""

    sae: SAE
    groups: Groups
    density: Tensor
    report: dict[str, Any]


def check(sae: SAE, source: Source) -> None:
    """Refuse clusters and codes that are not of this SAE and these rows."""
    rows = source.activations
    for folder, meta in ((source.clusters.folder, source.clusters.meta), (source.latents.folder, source.latents.meta)):
        if meta["layer"] != rows.layer:
            raise BadInput(f"{folder} is of layer {meta['layer']}, but {rows.folder} of layer {rows.layer}")
        if meta["latents"] != sae.latents:
            raise BadInput(f"{folder} is of {meta['latents']} latents, but the SAE has {sae.latents}; run it again")
    if not len(source.clusters.living):
        raise BadInput(f"all {sae.latents} latents of {source.clusters.folder} are dead; there is nothing to merge")
    if source.latents.meta["rows"] != rows.rows or sae.width != rows.width:
        raise BadInput(f"{source.latents.folder} is not of the rows of {rows.folder}; run interpret again")


def merge(
    sae: SAE,
    source: Source,
    knobs: Merge,
    lm: Load | None,
    device: torch.device = CPU,
    work: Path | None = None,
) -> Merged:
    """Merge ``sae``, on ``device``; measure it on the test rows, beside what it came from and two baselines.

    Those keep as many latents, the ones that write most: ``dropped`` as they are, ``refitted`` with the same refit.
    ``lm`` is called when the model is needed, which may be loaded meanwhile. ``work``: where the result of each pass
    over the rows is kept until the stage is done.
    """
    rows, codes = source.activations, source.latents.codes
    living = len(source.clusters.living)
    decoder = sae.decoder.double().cpu().numpy()

    def at(name: str) -> Path | None:
        return work / name if work else None

    training_rows = blocks(rows, codes, *rows.split("train"))
    sums = _kept_moments(at("moments.safetensors"), lambda: moments(training_rows, sae.latents, sae.width))
    sizes = [max(1, round(share * living)) for share in knobs.curve]
    groups, *points = grouped(knobs, source.clusters, sums, decoder, sizes)

    def made(groups: Groups) -> SAE:
        return smaller(sae, groups, *decoder_of(sae, sums, groups, living, knobs.ridge))

    rest, *rests = (strongest(sums, decoder, size) for size in (groups.count, *sizes))
    lines = {
        "merged": [(one, made(one)) for one in (groups, *points)],
        "dropped": [(one, without(sae, one)) for one in (rest, *rests)],
        "refitted": [(one, made(one)) for one in (rest, *rests)],
    }
    small, dropped, refitted = (lines[name][0][1] for name in lines)
    counts = resume.once_tensors(at("firing.safetensors"), lambda: firing(source, groups))
    before, after = counts["before"], counts["after"]
    if knobs.encoder == "mean" and small.groups is not None:
        per_row = float(after.sum()) / rows.rows  # of both, or the denser one would look better
        small, refitted = (
            _ordinary(sae, source, sums, one, per_row, knobs.ridge, device, at(f"{name}-moments.safetensors"))
            for name, one in {"merged": groups, "refitted": rest}.items()
        )
        every_row = shared_blocks(rows, 0, rows.rows, device)
        after = resume.once_tensors(at("firing-mean.safetensors"), lambda: {"after": firing_counts(small, every_row)})[
            "after"
        ]

    candidates = {"before": sae, "after": small, "dropped": dropped, "refitted": refitted}
    reconstruct = {name: one.reconstruct for name, one in candidates.items()}

    def judged() -> tuple[dict[str, dict[str, Any]], int]:
        model = lm() if lm else None
        return held_out(reconstruct, rows, source.contexts, rows.meta["hook"], model, knobs.ce_tokens, device)

    found, predicted = resume.once_json(at("held_out.json"), judged)
    kept = before[torch.from_numpy(rest.of >= 0)]
    for name, counts in {"before": before, "after": after, "dropped": kept, "refitted": kept}.items():
        found[name] |= {"dead": float((counts == 0).double().mean()), "latents": len(counts)}

    first = {"merged": "after", "dropped": "dropped", "refitted": "refitted"}
    curve = [_point(line, groups.count, found[name]) for line, name in first.items()]
    others = {line: points for line, (_, *points) in lines.items()}
    curve += resume.once_json(at("curve.json"), lambda: measured(source, others, device))

    members = np.bincount(groups.of[groups.of >= 0])
    report = {
        "layer": rows.layer,
        "by": knobs.by,
        "living": living,
        "merged": groups.count,
        "alone": int((members == 1).sum()),
        "largest": int(members.max()),
        "groups": groups.largest(TOLD),
        "dropped": living - int(members.sum()),
        "refitted": not _unchanged(sae, groups, living),
        "ce_tokens": predicted,
        "test": found,
        "curve": curve,
    }
    return Merged(candidates["after"], groups, after.double() / rows.rows, report)


def _kept_moments(path: Path | None, make: Callable[[], Moments]) -> Moments:
    return Moments.of(resume.once_tensors(path, lambda: make().tensors()))


def _ordinary(
    sae: SAE,
    source: Source,
    sums: Moments,
    groups: Groups,
    per_row: float,
    ridge: float,
    device: torch.device,
    kept: Path | None,
) -> SAE:
    """The merged SAE with an encoder of its own, and the decoder that is best for it. ``kept``: where the sums over its
    own codes are kept."""
    rows = source.activations

    def split(name: str) -> Iterator[Tensor]:
        return shared_blocks(rows, *rows.split(name), device)

    found = ordinary(sae, sums, groups, partial(split, "validation"), per_row)
    own = _kept_moments(kept, lambda: moments(encoded(found, split("train")), found.latents, found.width))
    each = alone(found.latents, np.arange(found.latents))
    return smaller(found, each, *decoder_of(found, own, each, -1, ridge))


def grouped(knobs: Merge, clusters: Clusters, sums: Moments, decoder: Floats, sizes: list[int]) -> list[Groups]:
    """The merging that the knobs ask for, and the same at each of ``sizes``."""
    labels, living = families(clusters, None), len(clusters.living)
    share = None if knobs.latents is None else max(1, round(knobs.latents * living))  # as many latents
    if knobs.by == "clusters":
        first = labels if share is None else families(clusters, share)
        smaller = [] if clusters.tree is None else [families(clusters, size) for size in sizes]
        found = [whole(one) for one in (first, *smaller)]
    else:
        count = share or int(labels.max()) + 1
        found = led(sums, decoder, labels, [count, *sizes])
    return [_scaled(knobs, groups, sums, decoder) for groups in found]


def _scaled(knobs: Merge, groups: Groups, sums: Moments, decoder: Floats) -> Groups:
    return weighted(groups, sums, decoder) if knobs.codes == "cosine" else groups


def _unchanged(sae: SAE, groups: Groups, living: int) -> bool:
    """Whether the decoder stays as it is: latents only change places, or it ends in a bend, which no ridge fits."""
    return (groups.permutes and groups.count == living) or sae.mean is not None


def decoder_of(sae: SAE, sums: Moments, groups: Groups, living: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Decoder (merged, width) and bias (width,) of a merging, float64."""
    decoder = sae.decoder.double().cpu().numpy()
    if _unchanged(sae, groups, living):
        return torch.from_numpy(start(sums, groups, decoder)), sae.b_dec.double().cpu()
    found, bias = refit(sums, groups, decoder, ridge)
    return torch.from_numpy(found), torch.from_numpy(bias)


def smaller(sae: SAE, groups: Groups, decoder: Tensor, bias: Tensor) -> SAE:
    """The merged SAE; an ordinary one where every latent of it is one of ``sae``'s.

    The bias is subtracted from what is read, too, so that ``b_enc`` takes up what it changed by. Parts that count
    towards nothing are left out, but with topk, where they take others' places.
    """
    device = sae.decoder.device
    of, shares = torch.from_numpy(groups.of).to(device), torch.from_numpy(groups.shares).float().to(device)
    kept = torch.arange(sae.parts, device=device) if sae.k is not None else (of >= 0).nonzero().flatten()
    ordinary = groups.permutes and len(kept) == groups.count
    if ordinary:
        kept = kept[of[kept].argsort()]
    shift = sae.encoder.double() @ (bias.to(device) - sae.b_dec.double())
    return replace(
        sae,
        encoder=sae.encoder[kept],
        b_enc=(sae.b_enc + shift).float()[kept],
        decoder=decoder.float().to(device),
        b_dec=bias.float().to(device),
        threshold=None if sae.threshold is None else sae.threshold[kept],
        groups=None if ordinary else of[kept],
        shares=None if ordinary else shares[kept],
    )


def without(sae: SAE, rest: Groups) -> SAE:
    """``sae`` with the latents of ``rest`` alone, as they are."""
    return smaller(sae, rest, sae.decoder[torch.from_numpy(rest.of >= 0)].double(), sae.b_dec.double())


def codes_of(codes: Codes, groups: Groups) -> Codes:
    """z M."""
    of, shares = torch.from_numpy(groups.of), torch.from_numpy(groups.shares).float()
    return summed(codes, of, shares, groups.count)


def firing(source: Source, groups: Groups) -> dict[str, Tensor]:
    """On how many of all stored rows each latent is active, ``before`` (latent,), and each merged one, ``after``
    (merged,)."""
    before = torch.zeros(len(groups.of), dtype=torch.long)
    after = torch.zeros(groups.count, dtype=torch.long)
    for _, codes in blocks(source.activations, source.latents.codes, 0, source.activations.rows):
        before += torch.bincount(codes.pattern.latents, minlength=len(before))
        after += torch.bincount(codes_of(codes, groups).pattern.latents, minlength=len(after))
    return {"before": before, "after": after}


@torch.inference_mode()
def measured(source: Source, lines: dict[str, list[tuple[Groups, SAE]]], device: torch.device) -> list[dict[str, Any]]:
    """fvu, fvu_inlier and l0 on the test rows of each point of some lines, in one pass over the rows."""
    rows = source.activations
    points = [
        (name, groups, one, Quality(rows.scale, rows.median_norm)) for name in lines for groups, one in lines[name]
    ]
    groupings = {id(groups): groups for _, groups, _, _ in points}  # lines share them
    for block, codes in blocks(rows, source.latents.codes, *rows.split("test")):
        x = put(block, device).float()
        own = sums_of(x)
        found = {key: codes_of(codes, groups).to(device) for key, groups in groupings.items()}
        for _, groups, one, quality in points:
            quality.add(x, one.decode(found[id(groups)]), found[id(groups)].active(), own)
    return [_point(name, groups.count, quality.values()) for name, groups, _, quality in points]


def _point(line: str, latents: int, values: dict[str, Any]) -> dict[str, Any]:
    return {"line": line, "latents": latents} | {name: values[name] for name in ("fvu", "fvu_inlier", "l0")}


def curve_csv(curve: list[dict[str, Any]]) -> str:
    """The curve as CSV: a row a size, the fvu of each line beside the others."""
    sizes = sorted({point["latents"] for point in curve})
    names = list(dict.fromkeys(["merged", "dropped", *(point["line"] for point in curve)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["latents", *names])
    for size in sizes:
        found = {point["line"]: point["fvu"] for point in curve if point["latents"] == size}
        writer.writerow([size, *(found.get(name) for name in names)])
    return text.getvalue()
