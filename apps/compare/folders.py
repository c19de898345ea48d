"""Compare SAE folders: every SAE is measured on the same held-out rows, document by document."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apps.compare.comparison import Comparison
from strata.comparison import documents, paired, words
from strata.comparison.documents import Group, Predicted
from strata.corpus import read as corpus
from strata.formats import read
from strata.lm.model import DTYPES, load
from strata.rows.shards import Activations, Contexts, open_layer
from strata.run.door import BadInput, near
from strata.run.files import read_json
from strata.sae import disk
from strata.sae.sae import SAE

AGAIN = "with another seed, on the same rows"


@dataclass(frozen=True)
class Opened:
    """One SAE and where it is from. ``metadata``: what its `cfg.json` says of that."""

    folder: Path
    sae: SAE
    metadata: dict[str, Any]
    fingerprint: str

    @property
    def hook(self) -> str | None:
        return self.metadata.get("hook_name")

    @property
    def ours(self) -> dict[str, Any]:
        """What Strata alone writes there."""
        return self.metadata.get("strata") or {}

    @property
    def seed(self) -> int | None:
        return self.ours.get("seed", self.metadata.get("seed"))


def compare(a: str, b: str, activations: Path) -> Comparison:
    """Compare two words of the command line, each of which names SAE folders.

    ``activations``: the folder of a layer's rows, or the one that holds those of all layers. Raises BadInput where the
    SAEs are of different layers, models or texts.
    """
    of_a, of_b = opened(a, "A"), opened(b, "B")
    _check_apart(of_a, of_b)
    rows, contexts = _rows(activations, [*of_a, *of_b])
    notes = _check_home([*of_a, *of_b], rows)

    group_a, group_b = (Group([one.sae for one in side], _seeds(side)) for side in (of_a, of_b))
    predicted = _predicted(rows.folder.parents[1] / "lm", rows, contexts)
    metrics = documents.compared(group_a, group_b, rows, contexts.rows("test")[1], predicted)
    return Comparison(
        a=a,
        b=b,
        members_a=[str(one.folder) for one in of_a],
        members_b=[str(one.folder) for one in of_b],
        remedy=words.remedy(len(of_a), len(of_b), AGAIN),
        scope=f"the same held-out rows of {rows.hook_name}, in {rows.folder}",
        notes=notes,
        rows=paired.compare(metrics),
    )


def opened(word: str, side: str) -> list[Opened]:
    """Open the SAEs that a word names: folders with commas between them, or a pattern such as `runs/k32-*`.

    Raises BadInput where one is no SAE, comes twice, or differs from the others in more than its seed could do.
    """
    folders = [Path(path) for part in word.split(",") for path in (_matching(part) or [part])]
    for folder in folders:
        if not (folder / disk.CONFIG).is_file():
            nearby = [str(path.parent) for path in folder.parent.glob(f"*/{disk.CONFIG}")]
            raise BadInput(
                f"{side}: {folder} is no folder of an SAE: it has no {disk.CONFIG}{near(str(folder), nearby)}"
            )

    saes = [_open(folder) for folder in folders]
    for place, one in enumerate(saes):
        if (twin := next((other for other in saes[:place] if other.fingerprint == one.fingerprint), None)) is not None:
            raise BadInput(f"{side} has one SAE twice: {twin.folder} and {one.folder} have the same bytes")
        if one.sae.latents != saes[0].sae.latents:
            raise BadInput(
                f"{side}: {saes[0].folder} has {saes[0].sae.latents:,} latents and {one.folder} {one.sae.latents:,}, "
                "so that they differ in more than their seed; name them as A and B"
            )
    return saes


def _matching(pattern: str) -> list[Path]:
    """List the paths that match a pattern, by name; a path without `*` matches itself, if it is there."""
    root = Path(pattern).anchor
    return sorted(Path(root).glob(pattern.removeprefix(root))) if "*" in pattern else []


def _open(folder: Path) -> Opened:
    """Open one SAE."""
    config = read_json(folder / disk.CONFIG)
    metadata = config.get("metadata") if isinstance(config, dict) else None
    return Opened(folder, read.read(folder).sae, metadata or {}, disk.fingerprint(folder))


def _seeds(side: list[Opened]) -> tuple[int, ...] | None:
    """Return the seeds of a side; None where one of them is not known."""
    seeds = [one.seed for one in side]
    return tuple(seed for seed in seeds if seed is not None) if None not in seeds else None


def _check_apart(a: list[Opened], b: list[Opened]) -> None:
    """Refuse SAEs that are in both groups, or that belong to different places of a model."""
    for one in a:
        for other in b:
            if one.fingerprint == other.fingerprint:
                raise BadInput(f"{one.folder} in A and {other.folder} in B are the same SAE, so that nothing differs")
    saes = [*a, *b]
    for what, of in (
        ("layer or hook", lambda one: one.hook),
        ("model", lambda one: one.ours.get("model_fingerprint", one.metadata.get("model_name"))),
        ("text or split of it", lambda one: one.ours.get("corpus")),
    ):
        known = [one for one in saes if of(one) is not None]
        if other := next((one for one in known if of(one) != of(known[0])), None):
            raise BadInput(
                f"{known[0].folder} and {other.folder} are not of one {what} ({_short(of(known[0]))} and "
                f"{_short(of(other))}), so that no rows are held out for both"
            )


def _short(value: str) -> str:
    """Shorten a hash."""
    return value if len(value) < 40 else value[:8]


def _rows(folder: Path, saes: list[Opened]) -> tuple[Activations, Contexts]:
    """Open the rows of the SAEs' layer."""
    if not (folder / "meta.json").is_file() and (hook := next((one.hook for one in saes if one.hook), None)):
        layer = hook.split(".")[1] if hook.startswith("blocks.") else "0"
        folder /= layer
    if not (folder / "meta.json").is_file():
        raise BadInput(
            f"{folder} holds no activations; name the folder of a layer's rows, such as data/activations/9, as the "
            "third word, or run `dvc repro extract`"
        )
    return open_layer(folder, folder.parent / "tokens")


def _predicted(folder: Path, rows: Activations, contexts: Contexts) -> Predicted | None:
    """Open the language model that the rows are from, in the ``folder`` beside them; None where there is none."""
    if not rows.of_tokens or not (folder / "meta.json").is_file():
        return None
    if corpus.lm_meta(folder)["fingerprint"] != rows.meta["model"]["fingerprint"]:
        return None
    name, options = corpus.lm_path(folder)
    lm = load(name, DTYPES[rows.meta["forward"]], torch.device("cpu"), **options)
    return Predicted(lm, contexts, rows.meta["hook"])


def _check_home(saes: list[Opened], rows: Activations) -> list[str]:
    """Refuse rows on which the SAEs were not trained, or of another place. Return what could not be checked."""
    known = {
        "hook": (lambda one: one.hook, rows.hook_name),
        "model": (lambda one: one.ours.get("model_fingerprint"), rows.meta["model"]["fingerprint"]),
        "text": (lambda one: one.ours.get("corpus"), rows.meta["corpus"]),
    }
    unknown = []
    for what, (of, ours) in known.items():
        for one in saes:
            if of(one) is None:
                unknown.append(what)
            elif of(one) != ours:
                because = ", so that the rows may be among those it learned from" if what == "text" else ""
                raise BadInput(
                    f"{one.folder} was trained on another {what} ({_short(str(of(one)))}) than {rows.folder} has "
                    f"({_short(ours)}){because}"
                )
    missing = " and ".join(dict.fromkeys(unknown))
    return [f"Not every SAE says on which {missing} it was trained. This was not checked."] if missing else []
