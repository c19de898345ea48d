"""The model card: what the SAE is, where it belongs, how well it does, and how it is opened."""

import re
from pathlib import Path
from typing import Any

from strata.formats.found import Found
from strata.formats.hub import Place
from strata.formats.say import rule
from strata.run.params import dump_yaml

COLUMNS = ("fvu", "fvu_inlier", "l0", "delta_ce", "ce_recovered", "dead")
LOADING = {
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
LIBRARIES = {"saelens": "saelens", "sparsify": "sparsify"}


def beside(source: Path) -> Path | None:
    """`reports/train/<L>.json` of the project that ``source``, its `data/sae/<L>`, is of."""
    sae = source.resolve()
    path = sae.parents[2] / "reports/train" / f"{sae.name}.json" if len(sae.parents) > 2 else sae
    return path if sae.parent.name == "sae" and path.is_file() else None


def card(found: Found, form: str, report: dict[str, Any] | None, target: Place | None) -> str:
    """README.md of a folder in the format ``form``. ``report``: what train measured. No licence is named: that of the
    model's weights may bind the SAE's, and is not known here."""
    form = "saelens" if form == "strata" and found.sae.mean is None and found.sae.groups is None else form
    head = {"library_name": LIBRARIES.get(form), "base_model": _on_the_hub(found), "tags": ["sparse-autoencoder"]}
    front = dump_yaml({name: value for name, value in head.items() if value})
    folder = target.folder or target.repo.partition("/")[2] if target else "folder"
    parts = [f"---\n{front}---", "# Sparse autoencoder", _facts(found), *([_quality(report)] if report else [])]
    return "\n\n".join([*parts, _loading(form, folder, target)]) + "\n"


def _on_the_hub(found: Found) -> str | None:
    name = str(found.metadata.get("model_name", ""))
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _facts(found: Found) -> str:
    sae, metadata = found.sae, found.metadata
    ours = metadata.get("strata", {})
    named, before = metadata.get("model_name"), ours.get("given", {}).get("model_name")
    facts = {
        "model": named,
        "said to be for": before if before != named else None,
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
    """The table of the test split, the SAE beside its controls."""
    lines = {"SAE": report["test"], **report["controls"]}
    names = [name for name in COLUMNS if report["test"].get(name) is not None]
    rows = [f"| {who} | {' | '.join(_shown(values.get(name)) for name in names)} |" for who, values in lines.items()]
    said = f"Measured on {report['rows']['test']} held-out rows, beside controls that must do worse."
    return "\n".join([said, "", f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}", *rows])


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _loading(form: str, folder: str, target: Place | None) -> str:
    codes = [LOADING[form]] if form in LOADING else []
    codes += [STRATA] if form in ("saelens", "strata") else []
    blocks = [f"```python\n{code.format(folder=folder)}\n```" for code in codes]
    fetched = f"In the folder `{folder}` of `{target.repo}`." if target and target.folder else ""
    return "\n\n".join([*([fetched] if fetched else []), "It reads raw activations.", *blocks])
