"""What Numba compiled for the user's checkout serves DVC's temporary ones, which begin without."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from strata.sae.engine import vnni

ROOT = Path(__file__).resolve().parents[1]
HITS = """
import numpy as np
from strata.training import adamw_rows
adamw_rows.projected(np.ones((2, 4), np.float32), np.ones((2, 4), np.float32))
print(sum(adamw_rows.projected.stats.cache_hits.values()))
"""


INLINED = """
import numpy as np
from strata.sae.engine import vnni
x, panels = np.ones((64, 8), np.float32), vnni.room(64, 8)
ones, nothing = x[0].copy(), np.zeros(64, np.float32)
rows, sums = vnni.of_rows(x, ones), vnni.of_latents(x, ones, panels)
vnni.above(64, 64, *rows, panels, *sums, nothing, nothing)
print(sum(vnni.above.stats.cache_hits.values()))
"""


def hits(workspace: Path, checkout: Path, code: str = HITS, changed: str = "training/adamw_rows.py") -> int:
    """How often the function came from what was kept, in a fresh workspace of ``checkout``."""
    shutil.copytree(ROOT / "strata", workspace / "strata", ignore=shutil.ignore_patterns("__pycache__"))
    with (workspace / "strata" / changed).open("a") as file:
        file.write(f"\n# {workspace.name.partition('-')[0]}\n")
    env = {**os.environ, "DVC_ROOT": str(checkout)}
    done = subprocess.run([sys.executable, "-c", code], cwd=workspace, env=env, check=True, capture_output=True)
    assert not list(workspace.rglob("*.nbc"))
    return int(done.stdout)


def test_a_second_workspace_compiles_nothing(tmp_path: Path):
    assert [hits(tmp_path / name, tmp_path) for name in ("one-a", "one-b")] == [0, 1]
    assert list((tmp_path / "strata" / "training" / "__pycache__").glob("adamw_rows.projected*.nbc"))


def test_other_code_compiles_its_own(tmp_path: Path):
    assert [hits(tmp_path / name, tmp_path) for name in ("one-a", "other-a", "other-b")] == [0, 0, 1]


def test_a_folder_of_the_users_own_keeps_what_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "own"))
    assert [hits(tmp_path / "one-a", tmp_path), len(list((tmp_path / "own").rglob("adamw_rows.projected*.nbc")))] == [
        0,
        1,
    ]
    assert not (tmp_path / "strata").exists()


@pytest.mark.skipif(not vnni.there(), reason="this CPU has no AVX-512 VNNI")
def test_code_that_is_compiled_into_a_function_of_another_file_counts(tmp_path: Path):
    """`tile.py` and `choosing.py` are compiled into the loops of `vnni.py`."""
    for changed in ("sae/engine/tile.py", "sae/engine/choosing.py"):
        names = [tmp_path / Path(changed).stem / name for name in ("one-a", "one-b", "other-a")]
        assert [hits(name, tmp_path / Path(changed).stem, INLINED, changed) for name in names] == [0, 1, 0]
