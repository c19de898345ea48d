"""Open the SAEs of twins, beside which an SAE is judged on the same rows."""

from pathlib import Path

from strata.sae import disk
from strata.sae.sae import SAE
from strata.twins.read import twin_folders
from strata.verdict.targets import ELSEWHERE


def comparable(folder: Path) -> dict[str, SAE]:
    """Open a layer's twins that read the rows of its SAE, by name. ``folder``: what the stage controls wrote."""
    return {name: disk.load(path)[0] for name, path in twin_folders(folder).items() if name not in ELSEWHERE}
