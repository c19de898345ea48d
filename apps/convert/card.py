"""Write the model card: what the SAE is, where it belongs, how well it does, and how it is opened."""

import re
from pathlib import Path
from typing import Any

from strata.formats.found import Found
from strata.formats.hub import Place
from strata.formats.say import rule
from strata.run.files import absolute
from strata.run.params import dump_yaml

COLUMNS = ("fvu", "fvu_inlier", "l0", "delta_ce", "ce_recovered", "dead")
LOADING = {  # format -> code that opens an SAE in that format
    "saelens": 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("{folder}")',
    "sparsify": 'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk("{folder}")',
    "dictionary_learning": (
        "from dictionary_learning.utils import load_dictionary\n\n"
        'sae, config = load_dictionary("{folder}", device="cpu")'
    ),
    "npz": (
        'import numpy as np\n\nencoder = np.load("{folder}/encoder.npz")  # h = x @ W.T + b\n'
        'decoder = np.load("{folder}/decoder.npz")  # reconstruction = codes @ W + b'
    ),
}
STRATA = 'from pathlib import Path\n\nfrom strata.sae import disk\n\nsae, config = disk.load(Path("{folder}"))'
LIBRARIES = {"saelens": "saelens", "sparsify": "sparsify"}  # format -> the hub's name of the library that opens it


def beside(source: Path) -> Path | None:
    """Return `reports/train/<L>.json` of the project in which ``source`` is `data/sae/<L>`.

    Return None if ``source`` is no such folder, or nothing was measured of it.
    """
    sae = absolute(source)
    path = sae.parents[2] / "reports/train" / f"{sae.name}.json" if len(sae.parents) > 2 else sae
    return path if sae.parent.name == "sae" and path.is_file() else None


def card(found: Found, form: str, report: dict[str, Any] | None, target: Place | None) -> str:
    """Return the README.md of a folder in the format ``form``.

    ``report``: what train measured. ``target``: where the folder is published, if anywhere. The card names no licence:
    the licence of the model's weights may bind the SAE too, and it is not known here.
    """
    form = "saelens" if form == "strata" and found.sae.mean is None and found.sae.groups is None else form
    head = {"library_name": LIBRARIES.get(form), "base_model": _on_the_hub(found), "tags": ["sparse-autoencoder"]}
    front = dump_yaml({name: value for name, value in head.items() if value})

    folder = target.folder or target.repo.partition("/")[2] if target else "folder"
    parts = [f"---\n{front}---", "# Sparse autoencoder", _facts(found), *([_quality(report)] if report else [])]
    return "\n\n".join([*parts, _loading(form, folder, target)]) + "\n"


def _on_the_hub(found: Found) -> str | None:
    """Return the model's name if it can be one of the hub: ``owner/name``."""
    name = str(found.metadata.get("model_name", ""))
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _facts(found: Found) -> str:
    """Write the table of what is known of the SAE. What is not known has no line."""
    sae, metadata = found.sae, found.metadata
    ours = metadata.get("strata", {})
    model, first_model = metadata.get("model_name"), ours.get("given", {}).get("model_name")
    facts = {
        "model": model,
        "said to be for": first_model if first_model != model else None,
        "its fingerprint": ours.get("model_fingerprint"),
        "hook": metadata.get("hook_name"),
        "context": metadata.get("context_size"),
        "text's fingerprint": ours.get("corpus"),
        "sparsity rule": metadata.get("training_architecture", found.kind),
        "latents": sae.latents,
        "width": sae.width,
        "active where": rule(sae),
        "l0": metadata.get("l0"),
        "decoder ends in": None if sae.mean is None else sae.decoder_activation,
        "read from": f"a {found.format} file or folder" if found.format not in ("Strata", "SAELens") else None,
    }
    rows = [f"| {name} | {_shown(value)} |" for name, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])


def _quality(report: dict[str, Any]) -> str:
    """Write the table of the test split, the SAE beside its controls."""
    lines = {"SAE": report["test"], **report["controls"]}
    names = [name for name in COLUMNS if report["test"].get(name) is not None]
    rows = [f"| {who} | {' | '.join(_shown(values.get(name)) for name in names)} |" for who, values in lines.items()]
    caption = f"Measured on {report['rows']['test']} held-out rows, beside controls that must do worse."
    return "\n".join([caption, "", f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}", *rows])


def _shown(value: Any) -> str:
    """Write a value for a cell of a table."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _loading(form: str, folder: str, target: Place | None) -> str:
    """Write how the SAE is opened, by each library that can."""
    snippets = [LOADING[form]] if form in LOADING else []
    snippets += [STRATA] if form in ("saelens", "strata") else []
    blocks = [f"```python\n{snippet.format(folder=folder)}\n```" for snippet in snippets]
    place = [f"In the folder `{folder}` of `{target.repo}`."] if target and target.folder else []
    return "\n\n".join([*place, "It reads raw activations.", *blocks])
