"""Make a dictionary smaller, and measure what that costs. The alternative beside it: drop latents instead."""

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
from strata.measure.quality import Quality, firing_counts
from strata.measure.quality import sums as sums_of
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
    """What a layer's dictionary is merged with: the rows, the codes of these rows, and the clusters."""

    activations: Activations
    contexts: Contexts
    latents: Latents
    clusters: Clusters


@dataclass(frozen=True)
class Merged:
    """The result of a merging.

    ``sae``: the smaller one. ``groups``: where each latent went. ``density``: (merged,) the share of rows on which each
    merged latent is active. ``report``: the numbers of `reports/merge/<L>.json`.
    """

    sae: SAE
    groups: Groups
    density: Tensor
    report: dict[str, Any]


def check(sae: SAE, source: Source) -> None:
    """Raise BadInput if the clusters or codes belong to another SAE or other rows, or if all latents are dead."""
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
    """Merge the latents of ``sae``, on ``device``, and measure the result on the test rows.

    It is compared with ``before``, the SAE that was merged, and with two baselines. These keep as many latents, namely
    the ones that write most: ``dropped`` keeps them as they are, ``refitted`` refits them as the merging is refitted.

    ``lm``: called when the language model is needed, so that it can load in the background. ``work``: a folder where
    the result of each pass over the rows is kept until the stage is done.
    """
    rows, codes = source.activations, source.latents.codes
    living = len(source.clusters.living)
    decoder = sae.decoder.double().cpu().numpy()

    def kept_at(name: str) -> Path | None:
        return work / name if work else None

    # Pass over the training rows: the sums that every merging and every refit needs.
    training_rows = blocks(rows, codes, *rows.split("train"))
    sums = _kept_moments(kept_at("moments.safetensors"), lambda: moments(training_rows, sae.latents, sae.width))

    # The merging that is asked for, then one for each further size of the curve; the baselines have the same sizes.
    sizes = [max(1, round(share * living)) for share in knobs.curve]
    groups, *curve_groups = grouped(knobs, source.clusters, sums, decoder, sizes)
    rest, *curve_rests = (strongest(sums, decoder, size) for size in (groups.count, *sizes))

    def refitted_sae(groups: Groups) -> SAE:
        return smaller(sae, groups, *decoder_of(sae, sums, groups, living, knobs.ridge))

    lines = {
        "merged": [(point, refitted_sae(point)) for point in (groups, *curve_groups)],
        "dropped": [(point, without(sae, point)) for point in (rest, *curve_rests)],
        "refitted": [(point, refitted_sae(point)) for point in (rest, *curve_rests)],
    }
    small, dropped, refitted = (lines[name][0][1] for name in lines)

    # Pass over all rows: on how many of them each latent fires.
    counts = resume.once_tensors(kept_at("firing.safetensors"), lambda: firing(source, groups))
    before, after = counts["before"], counts["after"]

    if knobs.encoder == "mean" and small.groups is not None:
        # The same number of active latents for both, because otherwise the denser one would look better.
        per_row = float(after.sum()) / rows.rows
        small, refitted = (
            _ordinary(sae, source, sums, grouping, per_row, knobs.ridge, device, kept_at(f"{name}-moments.safetensors"))
            for name, grouping in {"merged": groups, "refitted": rest}.items()
        )
        every_row = shared_blocks(rows, 0, rows.rows, device)
        counts = resume.once_tensors(
            kept_at("firing-mean.safetensors"), lambda: {"after": firing_counts(small, every_row)}
        )
        after = counts["after"]

    # Pass over the test rows, and through the language model: how good each dictionary is.
    candidates = {"before": sae, "after": small, "dropped": dropped, "refitted": refitted}
    reconstruct = {name: candidate.reconstruct for name, candidate in candidates.items()}

    def judged() -> tuple[dict[str, dict[str, Any]], int]:
        model = lm() if lm else None
        hook = rows.meta["hook"]
        metrics, predictions = held_out(reconstruct, rows, source.contexts, hook, model, knobs.ce_tokens, device)
        return metrics, len(predictions.document)

    test, predicted_tokens = resume.once_json(kept_at("held_out.json"), judged)
    rest_counts = before[torch.from_numpy(rest.of >= 0)]
    firing_rows = {"before": before, "after": after, "dropped": rest_counts, "refitted": rest_counts}
    for name, latent_rows in firing_rows.items():
        test[name] |= {"dead": float((latent_rows == 0).double().mean()), "latents": len(latent_rows)}

    # The curve: the size that is asked for is measured already, the others in one more pass over the test rows.
    measured_as = {"merged": "after", "dropped": "dropped", "refitted": "refitted"}
    curve = [_point(line, groups.count, test[name]) for line, name in measured_as.items()]
    further_points = {line: points for line, (_, *points) in lines.items()}
    curve += resume.once_json(kept_at("curve.json"), lambda: measured(source, further_points, device))

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
        "ce_tokens": predicted_tokens,
        "test": test,
        "curve": curve,
    }
    return Merged(candidates["after"], groups, after.double() / rows.rows, report)


def _kept_moments(path: Path | None, make: Callable[[], Moments]) -> Moments:
    """Read the sums from ``path`` if an earlier run kept them there; otherwise make and keep them."""
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
    """Build the merged SAE with an encoder of its own, and with the decoder that is best for its codes.

    ``per_row``: how many latents are active on a row, in the mean. ``kept``: the file where the sums over the codes of
    the new encoder are kept.
    """
    rows = source.activations

    def split(name: str) -> Iterator[Tensor]:
        return shared_blocks(rows, *rows.split(name), device)

    encoding = ordinary(sae, sums, groups, partial(split, "validation"), per_row)
    new_sums = _kept_moments(kept, lambda: moments(encoded(encoding, split("train")), encoding.latents, encoding.width))
    each_alone = alone(encoding.latents, np.arange(encoding.latents))
    decoder, bias = decoder_of(encoding, new_sums, each_alone, -1, ridge)  # -1: always refit
    return smaller(encoding, each_alone, decoder, bias)


def grouped(knobs: Merge, clusters: Clusters, sums: Moments, decoder: Floats, sizes: list[int]) -> list[Groups]:
    """Make the groups that ``knobs`` ask for, and the same with as many groups as each of ``sizes`` says.

    ``decoder``: (latent, width) float64. Groups by clusters have no further sizes where there is no tree to cut.
    """
    labels, living = families(clusters, None), len(clusters.living)
    wanted = None if knobs.latents is None else max(1, round(knobs.latents * living))  # None: as many as clusters
    if knobs.by == "clusters":
        wanted_labels = labels if wanted is None else families(clusters, wanted)
        cut_labels = [] if clusters.tree is None else [families(clusters, size) for size in sizes]
        groupings = [whole(cluster_of) for cluster_of in (wanted_labels, *cut_labels)]
    else:
        count = wanted or int(labels.max()) + 1
        groupings = led(sums, decoder, labels, [count, *sizes])
    return [_scaled(knobs, groups, sums, decoder) for groups in groupings]


def _scaled(knobs: Merge, groups: Groups, sums: Moments, decoder: Floats) -> Groups:
    """Give the groups the shares that ``knobs.codes`` asks for: cosines, or 1 for every member."""
    return weighted(groups, sums, decoder) if knobs.codes == "cosine" else groups


def _unchanged(sae: SAE, groups: Groups, living: int) -> bool:
    """Whether the decoder is not refitted: latents only change places, or it is not linear, which no ridge can fit."""
    return (groups.permutes and groups.count == living) or sae.mean is not None


def decoder_of(sae: SAE, sums: Moments, groups: Groups, living: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Compute the decoder (merged, width) and the bias (width,) of a merging, float64.

    ``living``: how many latents of ``sae`` are not dead. Where nothing is merged there is no refit.
    """
    decoder = sae.decoder.double().cpu().numpy()
    if _unchanged(sae, groups, living):
        return torch.from_numpy(start(sums, groups, decoder)), sae.b_dec.double().cpu()
    refitted, bias = refit(sums, groups, decoder, ridge)
    return torch.from_numpy(refitted), torch.from_numpy(bias)


def smaller(sae: SAE, groups: Groups, decoder: Tensor, bias: Tensor) -> SAE:
    """Build the merged SAE: the parts of ``sae`` that count, in ``groups``, with a new ``decoder`` and ``bias``.

    ``decoder``: (merged, width). ``bias``: (width,); the encoder subtracts it too, so that ``b_enc`` makes up for its
    change. The result is an ordinary SAE, without groups, where every merged latent is one latent of ``sae``. Latents
    that count towards nothing are left out. Topk keeps them, because there they take the places of others.
    """
    device = sae.decoder.device
    of, shares = torch.from_numpy(groups.of).to(device), torch.from_numpy(groups.shares).float().to(device)
    kept = torch.arange(sae.parts, device=device) if sae.k is not None else (of >= 0).nonzero().flatten()
    ordinary = groups.permutes and len(kept) == groups.count
    if ordinary:
        kept = kept[of[kept].argsort()]  # in the order of the merged latents

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
    """Keep only the latents of ``rest``, each as it is in ``sae``."""
    return smaller(sae, rest, sae.decoder[torch.from_numpy(rest.of >= 0)].double(), sae.b_dec.double())


def codes_of(codes: Codes, groups: Groups) -> Codes:
    """Compute the groups' codes z M from the latents' codes z, where M is the merge matrix (see `groups.py`)."""
    of, shares = torch.from_numpy(groups.of), torch.from_numpy(groups.shares).float()
    return summed(codes, of, shares, groups.count)


def firing(source: Source, groups: Groups) -> dict[str, Tensor]:
    """Count on how many stored rows each latent fires, as ``before`` (latent,), and each merged one, as ``after``
    (merged,)."""
    before = torch.zeros(len(groups.of), dtype=torch.long)
    after = torch.zeros(groups.count, dtype=torch.long)
    for _, codes in blocks(source.activations, source.latents.codes, 0, source.activations.rows):
        before += torch.bincount(codes.pattern.latents, minlength=len(before))
        after += torch.bincount(codes_of(codes, groups).pattern.latents, minlength=len(after))
    return {"before": before, "after": after}


@torch.inference_mode()
def measured(source: Source, lines: dict[str, list[tuple[Groups, SAE]]], device: torch.device) -> list[dict[str, Any]]:
    """Measure fvu, fvu_inlier and l0 on the test rows for each point of each line, in one pass over the rows."""
    rows = source.activations
    points = [
        (line, groups, sae, Quality(rows.scale, rows.median_norm)) for line in lines for groups, sae in lines[line]
    ]
    groupings = {id(groups): groups for _, groups, _, _ in points}  # lines share groups: each is encoded once a block

    for block, codes in blocks(rows, source.latents.codes, *rows.split("test")):
        x = put(block, device).float()
        x_sums = sums_of(x)
        group_codes = {key: codes_of(codes, groups).to(device) for key, groups in groupings.items()}
        for _, groups, sae, quality in points:
            z = group_codes[id(groups)]
            quality.add(x, sae.decode(z), z.active(), x_sums)
    return [_point(line, groups.count, quality.values()) for line, groups, _, quality in points]


def _point(line: str, latents: int, values: dict[str, Any]) -> dict[str, Any]:
    return {"line": line, "latents": latents} | {name: values[name] for name in ("fvu", "fvu_inlier", "l0")}


def curve_csv(curve: list[dict[str, Any]]) -> str:
    """Write the curve as CSV: one row for each size, one column for the fvu of each line."""
    sizes = sorted({point["latents"] for point in curve})
    names = list(dict.fromkeys(["merged", "dropped", *(point["line"] for point in curve)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["latents", *names])
    for size in sizes:
        fvu = {point["line"]: point["fvu"] for point in curve if point["latents"] == size}
        writer.writerow([size, *(fvu.get(name) for name in names)])
    return text.getvalue()
