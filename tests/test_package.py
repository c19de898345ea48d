"""The library as a package: it imports fast, names all that it needs, and works from a wheel in an empty folder."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from conftest import VOCABULARY

import strata
from strata.front.lm import DEFAULT

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


VECTORS = """
import numpy as np, strata

assert "site" in strata.__file__
vectors = strata.Vectors(np.random.default_rng(0).normal(size=(200, 16)), range(200), ["a b", "c d"] * 100)
sae = strata.train(vectors, latents=32, k=4, epochs=2)
strata.cluster(strata.latents(sae, vectors))
strata.save(sae, "my-sae")
assert strata.load("my-sae").latents == 32
"""
README = """
import sys

import strata

source, texts = sys.argv[1], strata.texts(sys.argv[2], most=60)
layer, context, size, k = map(int, sys.argv[3:])
lm = strata.load_lm(source)
acts = strata.activations(lm, texts, layers=[layer], context=context)
sae = strata.train(acts[layer], rule="topk", latents=size, k=k)
fvu = sae.quality.set_index("what")["fvu"]
assert fvu["SAE"] < fvu["untrained"] and fvu["SAE"] < fvu["mean"], fvu

latents = strata.latents(sae, acts[layer])
families = strata.cluster(latents)
smaller = strata.merge(sae, acts[layer], families)
assert len(latents.table) == size > smaller.sae.latents

prompt = lm.tokenizer(next(strata.texts(sys.argv[2])), return_tensors="pt", truncation=True, max_length=16)
before = lm.model(**prompt).logits
with strata.steer(lm, sae, {42: strata.Set(100.0)}, layer=layer):
    assert not lm.model(**prompt).logits.equal(before)
assert lm.model(**prompt).logits.equal(before)

strata.save(sae, "my-sae")
rows = acts[layer].read(0, 50).float()
assert strata.load("my-sae").encode(rows).dense().equal(sae.sae.encode(rows).dense())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as `pip install .` puts it into an environment."""
    folder = tmp_path_factory.mktemp("wheel")
    built = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = folder.glob("strata_sae-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def in_an_empty_folder(folder: Path, site: Path, code: str, *words: str) -> None:
    """Run ``code`` where there is nothing else, and see that it leaves its SAE alone behind."""
    (folder / "empty").mkdir()
    env = {"PYTHONPATH": str(site), "PATH": "", "HOME": str(folder)}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=folder / "empty", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (folder / "empty").iterdir()] == ["my-sae"]


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(site: Path, tmp_path: Path):
    """What is installed is the library, its templates and the values of knobs; it needs no checkout."""
    names = {path.relative_to(site).as_posix() for path in site.rglob("*")}
    assert {"strata/__init__.py", "strata/py.typed", "strata/params.yaml", "strata/families/map.js"} <= names
    assert not names & {"stages", "apps", "src", "tests"}
    in_an_empty_folder(tmp_path, site, VECTORS)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "Gemma"])
def test_the_example_of_the_readme_runs_in_an_empty_folder(site: Path, gpt2: Path, model: str, tmp_path: Path):
    if model == "Gemma":
        in_an_empty_folder(tmp_path, site, README, DEFAULT, "package:gensim-wikipedia", "6", "128", "512", "32")
        return
    corpus = tmp_path / "texts.txt"
    words = [name for name in VOCABULARY if not name.startswith("<")]
    lines = [" ".join(words[(line * step) % len(words)] for step in range(1, 50)) for line in range(1, 61)]
    corpus.write_text("\n\n".join(lines))
    in_an_empty_folder(tmp_path, site, README, str(gpt2), str(corpus), "2", "64", "128", "8")
