"""What Numba compiled for the user's checkout serves DVC's temporary ones, which begin without."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HITS = """
import numpy as np
from stages.sae import cpu
cpu.projected(np.ones((2, 4), np.float32), np.ones((2, 4), np.float32))
print(sum(cpu.projected.stats.cache_hits.values()))
"""


def hits(workspace: Path, checkout: Path) -> int:
    """How often the function came from what was kept, in a fresh workspace of ``checkout``."""
    shutil.copytree(ROOT / "stages", workspace / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    with (workspace / "stages" / "sae" / "cpu.py").open("a") as file:
        file.write(f"\n# {workspace.name.partition('-')[0]}\n")
    env = {**os.environ, "DVC_ROOT": str(checkout)}
    done = subprocess.run([sys.executable, "-c", HITS], cwd=workspace, env=env, check=True, capture_output=True)
    assert not list(workspace.rglob("*.nbc"))
    return int(done.stdout)


def test_a_second_workspace_compiles_nothing(tmp_path: Path):
    assert [hits(tmp_path / name, tmp_path) for name in ("one-a", "one-b")] == [0, 1]
    assert list((tmp_path / "stages" / "sae" / "__pycache__").glob("cpu.projected*.nbc"))


def test_other_code_compiles_its_own(tmp_path: Path):
    assert [hits(tmp_path / name, tmp_path) for name in ("one-a", "other-a", "other-b")] == [0, 0, 1]
