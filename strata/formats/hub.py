"""`hub:OWNER/REPO/FOLDER@REVISION`: SAEs on the Hugging Face hub, downloaded and uploaded."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download

from strata.formats import dictionary_learning, gemma_scope, npz, saelens, sparsify, state
from strata.formats.found import Found
from strata.formats.read import read
from strata.run.door import BadInput

PREFIX = "hub:"
FILES = (
    *("cfg.json", "config.json", sparsify.OURS, saelens.WEIGHTS, saelens.DENSITY, saelens.SCALER, sparsify.WEIGHTS),
    *(dictionary_learning.WEIGHTS, gemma_scope.FILE, npz.ENCODER, npz.DECODER),
)
ENDINGS = (*state.SUFFIXES, ".npz", ".safetensors", ".json")  # suffixes of files; layers.3 is a folder
UNREACHED = (HTTPError, OSError, ValueError)  # no answer, a refusal, nothing in the cache, an invalid name
MADE = ".gitattributes"  # the file that a new repository holds


@dataclass(frozen=True)
class Place:
    """A folder or file (``folder``, "" for the root) of a repository, at a revision."""

    repo: str
    folder: str
    revision: str | None


def place(text: str) -> Place:
    """Parse ``hub:OWNER/REPO/FOLDER@REVISION``, where FOLDER and REVISION may be left out; refuse any other text."""
    match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)((?:/[\w=+-][\w.=+-]*)*)(?:@([\w./-]+))?", text)
    if match is None:
        raise BadInput(f"{text!r} must be hub:OWNER/REPO/FOLDER@REVISION; the folder may be left out")
    return Place(match.group(1), match.group(2).strip("/"), match.group(3))


def bring(source: Place, ending: str | None = None) -> Found:
    """Read the SAE at a pinned revision; download it unless the hub's cache has it. ``ending``: see :func:`read`."""
    if source.revision in (None, "main"):
        raise BadInput(f"{source.repo} must be pinned: add @ and a commit or tag to hub:{source.repo}/{source.folder}")
    try:
        snapshot = snapshot_download(source.repo, revision=source.revision, allow_patterns=_wanted(source.folder))
    except UNREACHED as error:
        raise BadInput(f"{source.repo} at {source.revision} could not be fetched: {_one_line(error)}") from None

    home = Path(snapshot)  # this folder is named after the commit, also where a tag was given
    if not (home / source.folder).exists():
        raise BadInput(f"{source.repo} at {source.revision} holds no SAE in {source.folder or 'its root'}")

    imported = read(home / source.folder, ending)
    origin = {"hub": source.repo, "folder": source.folder, "revision": home.name}
    return replace(imported, metadata={**imported.metadata, "imported_from": origin})


def _wanted(place: str) -> list[str]:
    """List the files to download for the folder or file ``place``: all that may belong to an SAE there.

    The folder above it may hold the configuration of the run that made the SAE.
    """
    path = Path(place)
    folder = path.parent if path.suffix in ENDINGS else path
    files = [path, folder.parent / "config.json", *(folder / name for name in FILES)]
    return [file.as_posix() for file in files if file.name]


def check_new(target: Place) -> None:
    """Refuse a target with a revision, and a folder (or a repository) that is not empty: nothing is overwritten."""
    if target.revision is not None:
        raise BadInput(f"hub:{target.repo} is written to its main branch; leave out @{target.revision}")
    try:
        api = HfApi()
        files = api.list_repo_files(target.repo) if api.repo_exists(target.repo) else []
    except UNREACHED as error:
        raise BadInput(f"{target.repo} could not be read on the hub: {_one_line(error)}") from None

    inside = f"{target.folder}/" if target.folder else ""
    if any(file == target.folder or file.startswith(inside) for file in files if file != MADE):
        where = f"hub:{target.repo}/{target.folder}".rstrip("/")
        raise BadInput(f"{where} has files already, and nothing is written over; name another folder")


def give(folder: Path, target: Place) -> str:
    """Upload ``folder``, and return the address of the commit. A repository that does not exist is created, as public.

    The access token comes from `hf auth login` or HF_TOKEN.
    """
    try:
        api = HfApi()
        api.create_repo(target.repo, private=False, exist_ok=True)
        message = "Upload a sparse autoencoder"
        commit = api.upload_folder(
            repo_id=target.repo, folder_path=folder, path_in_repo=target.folder or None, commit_message=message
        )
    except UNREACHED as error:
        raise BadInput(f"{target.repo} could not be written on the hub: {_one_line(error)}") from None
    return str(commit.commit_url)


def _one_line(error: Exception) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())
