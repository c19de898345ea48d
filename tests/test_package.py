"""The library as a package: it imports fast, names all that it needs, and works from a wheel in an empty folder."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest

import strata

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = {  # module -> its package, where the names differ
    "gguf": "gguf",
    "huggingface_hub": "huggingface-hub",
    "jinja2": "Jinja2",
    "sentence_transformers": "sentence-transformers",
    "sklearn": "scikit-learn",
    "skopt": "scikit-optimize",
    "sqlalchemy": "SQLAlchemy",
    "umap": "umap-learn",
    "yaml": "PyYAML",
}
BROUGHT = {"llvmlite": "numba", "markupsafe": "Jinja2", "pydantic_core": "pydantic", "threadpoolctl": "scikit-learn"}
BROUGHT |= {"triton": "torch"}


def test_import_strata_takes_no_time(tmp_path: Path):
    code = "import time; start = time.perf_counter(); import strata, sys; print(time.perf_counter() - start)\n"
    code += "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules); assert 'train' in dir(strata)"
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    taken = min(
        float(
            subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, check=True).stdout
        )
        for _ in range(3)
    )
    assert taken < 0.3


def test_every_name_of_the_front_door_is_there_and_documented():
    for name in strata.__all__:
        thing = getattr(strata, name)
        assert thing.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        strata.trian  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def third_parties() -> set[str]:
    """The packages that some module of the library imports."""
    found = set()
    for file in (ROOT / "strata").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found.update(name.partition(".")[0] for name in names)
    return found - set(sys.stdlib_module_names) - {"strata"}


def test_what_the_library_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    everything = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    declared = {line.partition(">")[0].partition("[")[0].lower() for line in everything}
    needed = {DISTRIBUTIONS.get(name, BROUGHT.get(name, name)).lower() for name in third_parties()}
    assert needed <= declared


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path: Path):
    """What is installed is the library, its templates and the values of knobs; it needs no checkout."""
    built = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("strata_sae-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {"strata/__init__.py", "strata/py.typed", "strata/params.yaml", "strata/families/map.html.j2"} <= set(names)
    assert not [name for name in names if name.split("/")[0] in ("stages", "apps", "src", "tests")]

    code = (
        "import numpy as np, strata, pathlib\n"
        "assert 'site' in strata.__file__\n"
        "vectors = strata.Vectors(np.random.default_rng(0).normal(size=(200, 16)), range(200), ['a b', 'c d'] * 100)\n"
        "sae = strata.train(vectors, latents=32, k=4, epochs=2)\n"
        "strata.cluster(strata.latents(sae, vectors))\n"
        "strata.save(sae, 'my-sae')\n"
        "print(strata.load('my-sae').latents, sorted(path.name for path in pathlib.Path('.').iterdir()))\n"
    )
    (tmp_path / "empty").mkdir()
    env = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "empty", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("32 ['my-sae'")
