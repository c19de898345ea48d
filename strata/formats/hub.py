"""`hub:OWNER/REPO/FOLDER@REVISION`: SAEs on the Hugging Face hub, brought and given."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download

from strata.formats import dictionary_learning, gemma_scope, saelens, sparsify, state
from strata.formats.found import Found
from strata.formats.read import read
from strata.run.door import BadInput
from strata.sae import npz

PREFIX = "hub:"
FILES = (
    *("cfg.json", "config.json", sparsify.OURS, saelens.WEIGHTS, saelens.DENSITY, saelens.SCALER, sparsify.WEIGHTS),
    *(dictionary_learning.WEIGHTS, gemma_scope.FILE, npz.ENCODER, npz.DECODER),
)
ENDINGS = (*state.SUFFIXES, ".npz", ".safetensors", ".json")  # of a file; layers.3 is a folder
UNREACHED = (HTTPError, OSError, ValueError)  # no answer, a refusal, nothing in the cache, a name that is none
MADE = ".gitattributes"  # what a new repository holds


@dataclass(frozen=True)
class Place:
    """A folder or file (``folder``, "" for the root) of a repository, at a revision."""

    repo: str
    folder: str
    revision: str | None


def place(text: str) -> Place:
    """What ``hub:OWNER/REPO/FOLDER@REVISION`` names; FOLDER and REVISION may be left out."""
    match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)((?:/[\w=+-][\w.=+-]*)*)(?:@([\w./-]+))?", text)
    if match is None:
        raise BadInput(f"{text!r} must be hub:OWNER/REPO/FOLDER@REVISION; the folder may be left out")
    return Place(match.group(1), match.group(2).strip("/"), match.group(3))


def bring(source: Place, ending: str | None = None) -> Found:
    """The SAE at a pinned revision, out of the hub's cache if it is there."""
    if source.revision in (None, "main"):
        raise BadInput(f"{source.repo} must be pinned: add @ and a commit or tag to hub:{source.repo}/{source.folder}")
    try:
        snapshot = snapshot_download(source.repo, revision=source.revision, allow_patterns=_wanted(source.folder))
    except UNREACHED as error:
        raise BadInput(f"{source.repo} at {source.revision} could not be fetched: {_said(error)}") from None
    home = Path(snapshot)  # named after the commit, which a tag stood for
    if not (home / source.folder).exists():
        raise BadInput(f"{source.repo} at {source.revision} holds no SAE in {source.folder or 'its root'}")
    found = read(home / source.folder, ending)
    origin = {"hub": source.repo, "folder": source.folder, "revision": home.name}
    return replace(found, metadata={**found.metadata, "imported_from": origin})


def _wanted(named: str) -> list[str]:
    """An SAE's files in a folder, or beside a file, and above them the configuration of the run that made it."""
    path = Path(named)
    folder = path.parent if path.suffix in ENDINGS else path
    files = [path, folder.parent / "config.json", *(folder / name for name in FILES)]
    return [file.as_posix() for file in files if file.name]


def check_new(target: Place) -> None:
    """Refuse a revision, and a folder (without one, a repository) that is not empty: nothing is written over."""
    if target.revision is not None:
        raise BadInput(f"hub:{target.repo} is written to its main branch; leave out @{target.revision}")
    try:
        api = HfApi()
        files = api.list_repo_files(target.repo) if api.repo_exists(target.repo) else []
    except UNREACHED as error:
        raise BadInput(f"{target.repo} could not be read on the hub: {_said(error)}") from None
    inside = f"{target.folder}/" if target.folder else ""
    if any(file == target.folder or file.startswith(inside) for file in files if file != MADE):
        where = f"hub:{target.repo}/{target.folder}".rstrip("/")
        raise BadInput(f"{where} has files already, and nothing is written over; name another folder")


def give(folder: Path, target: Place) -> str:
    """Upload ``folder``, to a public repository if there is none; returns the address of the commit. The token is the
    hub's own: `hf auth login` or HF_TOKEN."""
    try:
        api = HfApi()
        api.create_repo(target.repo, private=False, exist_ok=True)
        message = "Upload a sparse autoencoder"
        commit = api.upload_folder(
            repo_id=target.repo, folder_path=folder, path_in_repo=target.folder or None, commit_message=message
        )
    except UNREACHED as error:
        raise BadInput(f"{target.repo} could not be written on the hub: {_said(error)}") from None
    return str(commit.commit_url)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())
