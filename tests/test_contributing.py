"""What the pages for people say is there, and the recipes of CONTRIBUTING.md, followed to the letter."""

import ast
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest
import test_layout
import torch
import yaml
from dvc.cli import DvcParserError
from dvc.cli.parser import get_main_parser
from torch import Tensor

from stages.select.whole import SECTIONS
from strata import auto
from strata.rows.size import Size
from strata.sae import disk
from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations
from strata.training.autoencoder import Autoencoder, Scale, fold
from strata.training.knobs import Train
from strata.training.rules.base import Pass, Rule, Weights, exact_above
from strata.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


# --- what the pages say -------------------------------------------------------------------------------------------

PAGES = [page.relative_to(ROOT).as_posix() for page in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*")))]
MOST_LINES = 180  # of README.md
OPENING = "After this page you"  # of a page in docs
ELSEWHERE = {"sae_lens"}  # modules that readers import in an environment of their own

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FOLDERS = "src|apps|stages|strata|tests|notebooks|benchmarks|docs|recipes|reports/figures"
# A name that goes on with < stands for many: `stages/<stage>.py`.
PATH = re.compile(rf"(?<![\w./-])(?:(?:{FOLDERS})/[\w./-]++|\.ci/run|dvc\.yaml|params\.yaml)(?!<)")
MODULE = re.compile(r"(?<![\w./])((?:src|benchmarks)\.[a-z_]+)(?![\w/])")
KEY = re.compile(rf"(?<![\w./+-])(\+?)((?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+)(?![\w/])")
TARGET = re.compile(r"(?:^|[\s(&])make ([a-z]+)")
VARIABLE = re.compile(r"\bSTRATA_[A-Z]+\b")


def scripts(text: str) -> list[str]:
    """The bash blocks of a page, without comments."""
    return [re.sub(r"(^|\s)#.*", "", body) for language, body in FENCE.findall(text) if language == "bash"]


def code_of(text: str) -> str:
    """All that stands in a page as code: bash blocks, and spans between backticks."""
    return "\n".join([*scripts(text), *SPAN.findall(FENCE.sub("", text))])


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get: `## Get Python 3.11` -> get-python-311."""
    headings = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str, text: str) -> list[str]:
    """Links of ``page`` to a file, picture or heading that is not there."""
    faults = []
    for link in LINK.findall(FENCE.sub("", text)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists():
            faults.append(f"{page} links to {link}, which is not there")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8") if name else text):
            faults.append(f"{page} links to {link}, a heading that is not there")
    return faults


def absent(page: str, text: str) -> list[str]:
    """Files, scripts, targets of make and environment variables that ``page`` names, and that are not there."""
    code = code_of(text)
    faults = [path for path in PATH.findall(code) if not (ROOT / path.rstrip(".")).exists()]
    faults += [module for module in MODULE.findall(code) if not (ROOT / f"{module.replace('.', '/')}.py").is_file()]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", makefile, re.MULTILINE)
    faults += [f"make {target}" for target in TARGET.findall(code) if target not in targets]
    known = VARIABLE.findall("".join(file.read_text(encoding="utf-8") for file in test_layout.code(ROOT)))
    faults += [variable for variable in VARIABLE.findall(text) if variable not in known]
    return [f"{page} names {fault}, which is not there" for fault in faults]


def unknown_keys(page: str, text: str) -> list[str]:
    """Keys of params.yaml, or numbers of reports/summary.json, that ``page`` names, and that are not there."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    numbers = json.loads((ROOT / "reports" / "summary.json").read_text(encoding="utf-8"))
    faults = []
    for added, key in KEY.findall(code_of(text)):
        section, *names = key.split(".")
        if section == "by_layer":
            section, names = "train", names[1:]
        if not added and key not in numbers and not has(params[section], names):
            faults.append(f"{page} names {key}, which is not in params.yaml")
    return faults


def has(value: object, names: list[str]) -> bool:
    """Whether ``value`` has the key names[0], that value names[1], and so on."""
    for name in names:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def wrong_commands(page: str, text: str) -> list[str]:
    """Commands of DVC in ``page`` that DVC does not know, or not with these options."""
    lines = [*"\n".join(scripts(text)).replace("\\\n", " ").splitlines(), *SPAN.findall(FENCE.sub("", text))]
    faults = []
    for command in (part.strip() for line in lines for part in re.split(r"&&|;|\|\|", line)):
        command = re.sub(r"^(?:STRATA|OPENAI)_\w+=(?:\"[^\"]*\"|\S*)\s+", "", command)
        if re.match(r"dvc [a-z]", command):
            try:
                with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
                    get_main_parser().parse_args(shlex.split(command)[1:])
            except (SystemExit, DvcParserError):
                faults.append(f"{page}: dvc does not take {command!r}")
    return faults


def wrong_python(page: str, text: str) -> list[str]:
    """Python blocks of ``page`` that do not parse, or that import or use names that are not there."""
    faults = []
    for body in (body for language, body in FENCE.findall(text) if language == "python"):
        try:
            block = ast.parse(body)
        except SyntaxError as error:
            faults.append(f"{page}: line {error.lineno} of a python block does not parse")
            continue
        modules: dict[str, ModuleType] = {}  # name in the block -> the module that it is
        for statement in (node for node in ast.walk(block) if isinstance(node, ast.Import | ast.ImportFrom)):
            faults += [f"{page}: {fault}" for fault in bind(statement, modules)]
        for use in (node for node in ast.walk(block) if isinstance(node, ast.Attribute)):
            module = modules.get(use.value.id) if isinstance(use.value, ast.Name) else None
            if module is not None and not offers(module, use.attr):
                faults.append(f"{page}: {module.__name__} has no {use.attr}")
    return faults


def bind(statement: ast.Import | ast.ImportFrom, modules: dict[str, ModuleType]) -> list[str]:
    """Import what ``statement`` imports; put the modules among it into ``modules``, and return what is not there."""
    faults = []
    for alias in statement.names:
        name = statement.module or "" if isinstance(statement, ast.ImportFrom) else alias.name
        if name.partition(".")[0] in ELSEWHERE:
            continue
        try:
            module = importlib.import_module(name)
            if isinstance(statement, ast.ImportFrom):
                whole = f"{name}.{alias.name}"
                module = getattr(module, alias.name, None) or importlib.import_module(whole)
        except ImportError as error:
            faults.append(str(error))
            continue
        if isinstance(module, ModuleType):
            modules[alias.asname or alias.name] = module
    return faults


def offers(module: ModuleType, name: str) -> bool:
    """Whether ``module`` has ``name``. A package whose __init__ offers nothing by itself is not asked."""
    empty = hasattr(module, "__path__") and not hasattr(module, "__all__")
    return empty or hasattr(module, name)


CHECKS = (broken_links, absent, unknown_keys, wrong_commands, wrong_python)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [fault for check in CHECKS for fault in check(page, text)] == []
    assert not re.findall(r"TODO|FIXME|\b[A-Z]+_HERE\b", text), "nothing was left to be filled in"


@pytest.mark.parametrize(
    "text, fault",
    [
        ("[a](docs/nothing.md)", "README.md links to docs/nothing.md, which is not there"),
        ("![a](nothing.png)", "README.md links to nothing.png, which is not there"),
        ("[![a](LICENSE)](nothing.md)", "README.md links to nothing.md, which is not there"),
        ("[a](#nowhere)\n\n## Here", "README.md links to #nowhere, a heading that is not there"),
        ("`strata/nothing.py`", "README.md names strata/nothing.py, which is not there"),
        ("`python -m src.nothing`", "README.md names src.nothing, which is not there"),
        ("```bash\nmake nothing\n```", "README.md names make nothing, which is not there"),
        ("STRATA_NOTHING", "README.md names STRATA_NOTHING, which is not there"),
        ("`-S train.kk=3`", "README.md names train.kk, which is not in params.yaml"),
        ("`train.9.nothing`", "README.md names train.9.nothing, which is not in params.yaml"),
        ("```bash\ndvc exp ran -S train.k=3\n```", "README.md: dvc does not take 'dvc exp ran -S train.k=3'"),
        ("`dvc repro --nothing`", "README.md: dvc does not take 'dvc repro --nothing'"),
        ("```python\nx = (\n```", "README.md: line 1 of a python block does not parse"),
        ("```python\nimport nothing\n```", "README.md: No module named 'nothing'"),
        ("```python\nfrom strata.sae import nothing\n```", "README.md: No module named 'strata.sae.nothing'"),
        (
            "```python\nfrom strata.sae import disk\n\ndisk.nothing()\n```",
            "README.md: strata.sae.disk has no nothing",
        ),
    ],
)
def test_what_is_not_there_is_named(text: str, fault: str):
    assert [found for check in CHECKS for found in check("README.md", text)] == [fault]


@pytest.mark.parametrize(
    "text",
    [
        "[a](#get-python-311)\n\n## Get Python 3.11",
        "`stages/<stage>.py`, `+tune.space.rule`, `by_layer.9.k`, `train.9.l0`",
        '```bash\nSTRATA_LAUNCH="torchrun --nproc-per-node 2" dvc exp run -S a=1 \\\n  -S b=2  # make nothing\n```',
    ],
)
def test_what_is_there_is_not_named(text: str):
    assert [fault for check in CHECKS for fault in check("README.md", text)] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_each_page_says_first_what_it_is_for_and_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        title, blank, opening = page.read_text(encoding="utf-8").splitlines()[:3]
        assert title.startswith("# ") and not blank and opening.startswith(OPENING), page.name
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_make_helps_and_says_which_python_it_needs(tmp_path: Path):
    for name in ("Makefile", "requirements.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets is not None

    shown = make(tmp_path, "help")
    assert (
        shown.returncode == 0 and re.findall(r"^  make ([a-z]+) +\S", shown.stdout, re.MULTILINE) == targets[1].split()
    )

    refused = make(tmp_path, "setup", "PYTHON=false")
    sentence, after = refused.stderr.split("\n", 1)
    assert refused.returncode != 0 and "Traceback" not in refused.stderr and after.startswith("make: ***")
    assert sentence.startswith("Strata needs Python 3.11, 3.12 or 3.13, and false is not one of them: get one by 'uv ")
    assert not (tmp_path / ".venv").exists()


def make(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    # A `make test` around us would make this one its child: it would print "make[2]" and the folders it enters.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=folder, env=env, capture_output=True, text=True)


# --- a stage ------------------------------------------------------------------------------------------------------

FILES = ["strata/run/door.py", "strata/run/files.py", "strata/run/params.py"]
STANZA = {
    "cmd": "python -m src.count data/corpus data/count",
    "deps": ["data/corpus", "src/count.py", "stages/count.py", "strata/counting", *FILES],
    "params": ["count"],
    "outs": ["data/count"],
}
STAGE = '''"""Stage count: how many documents there are."""

from pathlib import Path

from strata.counting.count import count
from strata.counting.knobs import Count
from strata.run import params
from strata.run.files import read_json, write_json


def main(corpus: str, target: str) -> None:
    """CORPUS: what fetch wrote; TARGET: the folder that gets the number."""
    found = count(read_json(Path(corpus) / "meta.json"), params.load("count", Count))
    write_json(Path(target) / "meta.json", found)
'''
SCRIPT = '''"""The command line of stage count."""

from stages.count import main
from strata.run.door import run

if __name__ == "__main__":
    run(main)
'''
KNOBS = '''"""The section count of params.yaml."""

from strata.run.params import Section


class Count(Section):
    """See params.yaml."""

    run: bool
'''
WORK = '''"""Count documents."""

from strata.counting.knobs import Count


def count(meta: dict, knobs: Count) -> dict:
    return {"documents": meta["documents"]} if knobs.run else {"skipped": True}
'''


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout to which a stage was added by the recipe."""
    for name in test_layout.HOUSES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "strata" / "counting").mkdir()
    (tmp_path / "strata" / "counting" / "__init__.py").write_text('"""How many documents a corpus has."""\n')
    (tmp_path / "strata" / "counting" / "knobs.py").write_text(KNOBS)
    (tmp_path / "strata" / "counting" / "count.py").write_text(WORK)
    (tmp_path / "stages" / "count.py").write_text(STAGE)
    (tmp_path / "src" / "count.py").write_text(SCRIPT)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**values, "count": {"run": True}}))
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    stages = list(pipeline["stages"].items())
    at = [name for name, _ in stages].index("extract")
    whole = tmp_path / "stages" / "select" / "whole.py"
    whole.write_text(
        whole.read_text()
        .replace("from strata.run.door", "from strata.counting.knobs import Count\nfrom strata.run.door", 1)
        .replace("    cluster: Cluster\n", "    cluster: Cluster\n    count: Count\n", 1)
    )
    stages[0][1]["params"].append("count")
    stages[0][1]["deps"].append("strata/counting/knobs.py")
    pipeline["stages"] = dict([*stages[:at], ("count", STANZA), *stages[at:]])
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    monkeypatch.setattr(test_layout, "SECTIONS", (*test_layout.SECTIONS, "count"))
    return tmp_path


def faults(house: Path) -> list[str]:
    return [fault for rule in test_layout.RULES for fault in rule(house)]


def test_a_stage_by_the_recipe_keeps_the_rules(house: Path):
    assert faults(house) == []


@pytest.mark.parametrize(
    "left_out, fault",
    [
        ("strata/run/files.py", "count runs strata/run/files.py, which is not among its deps"),
        ("data/corpus", "count's command has data/corpus, which is no dep or out"),
    ],
)
def test_a_dep_that_was_forgotten_is_named(house: Path, left_out: str, fault: str):
    test_layout.edit(house, "count", "deps", drop=left_out)
    assert faults(house) == [fault]


def test_a_section_that_was_forgotten_is_named(house: Path):
    shutil.copyfile(ROOT / "params.yaml", house / "params.yaml")
    assert faults(house) == [
        "params.yaml lacks count",
        "select depends on the param count, which is not in params.yaml",
        "count depends on the param count, which is not in params.yaml",
    ]


# --- a sparsity rule ----------------------------------------------------------------------------------------------


class Above(Rule):
    """f = h · 1[h > θ], with one θ that is given."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))
        self.threshold: Tensor

    def select(self, h: Preactivations) -> tuple[Pattern, Tensor]:
        pattern, values = exact_above(h, self.threshold)
        keep = values > self.threshold
        return pattern.keep(keep), values[keep]

    def codes(self, h: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        return h

    def penalty(self, weights: Weights, run: Pass, unit: float) -> Tensor | float:
        return 1e-4 * run.codes.sum() / len(run.y)

    def settled(self, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        return weights.encoder, weights.b_enc, self.threshold.expand(len(weights.encoder))


def test_a_rule_by_the_recipe_trains_and_is_stored(tmp_path: Path):
    random = torch.Generator().manual_seed(0)
    section = auto.train(yaml.safe_load((ROOT / "params.yaml").read_text())["train"], Size("language", 51_200, 16))
    changes = {"latents": 48, "k": 4, "batch_size": 128, "auxk_latents": 8, "from_tune": [], "epochs": 1}
    knobs = Train.model_validate({**section, **changes})
    atoms = torch.nn.functional.normalize(torch.randn(24, 16, generator=random), dim=1)

    def batch() -> Tensor:
        codes = torch.zeros(128, 24).scatter(1, torch.randint(24, (128, 2), generator=random), 3.0)
        return codes @ atoms

    y = batch()
    scale = Scale(1.0, torch.zeros(16), float(y.var(0, correction=0).mean()))
    trainer = Trainer(Autoencoder(16, 48, random), Above(0.3), scale, knobs, 400, 0)
    steps = [trainer.advance(batch()) for _ in range(400)]
    assert steps[-1].fvu < 0.1 < steps[0].fvu and 0 < steps[-1].active < 24
    sae = fold(trainer.model, trainer.rule, scale)
    disk.save(tmp_path / "sae", sae, {})
    again, config = disk.load(tmp_path / "sae")
    assert config["architecture"] == "jumprelu" and torch.equal(again.reconstruct(y)[0], sae.reconstruct(y)[0])
    assert torch.allclose(again.reconstruct(y)[0], y - trainer.model(y, trainer.rule, random).residual, atol=1e-4)
