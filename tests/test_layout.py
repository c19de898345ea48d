"""The house rules: who may import whom, and that dvc.yaml names what each stage runs, reads and writes.

Each rule is a function from the root of a checkout to its faults, and each is shown a broken checkout.
"""

import ast
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.params import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
READERS = {
    "select": "whole",
    "fetch": "read",
    "extract": "shards",
    "tune": "read",
    "interpret": "read",
    "cluster": "read",
    "merge": "read",
    "report": "results",
    "serve": "explainer",
}  # what a later room may open files with
APPS = ["serve", "dashboard", "convert"]  # rooms that are no stages: they look at what these left
FLOORS = {"sae"}  # folders of the ground floor
FORBIDDEN = re.compile(r"pickle|torch\.load")
HARMLESS = re.compile(r"torch\.load\(path, map_location=\"cpu\", weights_only=True\)|import UnpicklingError")
OPENER = "stages/convert/state.py"  # the one file that opens a foreign `.pt`


# --- reading the checkout -----------------------------------------------------------------------------------------


def imports(file: Path, root: Path) -> Iterator[str]:
    """Every module that ``file`` imports, also inside functions; of this project as its dotted name."""
    package = ".".join(file.parent.relative_to(root).parts)
    for node in importing(file.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            module = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            for alias in node.names:  # `from stages.fetch import read` means the module, not a name in the package
                name = f"{module}.{alias.name}"
                yield name if source(name, root) else module


@cache
def importing(text: str) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of a file, parsed once however many copies of the checkout hold it."""
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]


def source(module: str, root: Path) -> Path | None:
    """The file of a module of this project that has code of its own; None for a package, whose __init__ has none."""
    file = root / (module.replace(".", "/") + ".py")
    return file if module.partition(".")[0] in ("src", "stages") and file.is_file() else None


def closure(file: Path, root: Path) -> set[str]:
    """All files of this project that running ``file`` can load, as paths from the root, itself among them."""
    found: set[str] = set()
    todo = [file]
    while todo:
        file = todo.pop()
        if (name := file.relative_to(root).as_posix()) not in found:
            found.add(name)
            todo += [there for module in imports(file, root) if (there := source(module, root))]
    return found


def stages(root: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def script(stage: dict[str, Any]) -> str:
    """`python -m src.train …` -> train."""
    python, flag, module, *_ = stage["cmd"].split()
    assert (python, flag) == ("python", "-m"), stage["cmd"]
    return module.removeprefix("src.")


def paths(stage: dict[str, Any], *kinds: str) -> list[str]:
    """The paths of deps, outs, metrics, plots, which may carry options."""
    entries = [entry for kind in kinds for entry in stage.get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def code(root: Path) -> list[Path]:
    return sorted(path for folder in ("src", "stages") for path in (root / folder).rglob("*.py"))


# --- the rules ----------------------------------------------------------------------------------------------------


def code_is_declared(root: Path) -> list[str]:
    """The code that a stage can load is exactly what its deps name: a file, its own room, or a floor's folder."""
    faults = []
    for name, stage in stages(root).items():
        needed = closure(root / "src" / f"{script(stage)}.py", root)
        listed = [path for path in paths(stage, "deps") if path.startswith(("src/", "stages/"))]
        folders = [path for path in listed if not path.endswith(".py")]
        covered = {file for file in needed if any(file == path or file.startswith(f"{path}/") for path in listed)}
        faults += [f"{name} runs {file}, which is not among its deps" for file in sorted(needed - covered)]
        for path in listed:
            if path in folders:
                if not any(file.startswith(f"{path}/") for file in needed):
                    faults.append(f"{name} lists {path}, of which it runs nothing")
                elif path not in {f"stages/{script(stage)}", *(f"stages/{floor}" for floor in FLOORS)}:
                    faults.append(f"{name} lists all of {path}; it may list the reader that it imports")
            elif path not in needed:
                faults.append(f"{name} lists {path}, which it does not run")
            elif any(path.startswith(f"{folder}/") for folder in folders):
                faults.append(f"{name} lists {path} and its folder")
    return faults


def floors_are_kept(root: Path) -> list[str]:
    """The ground floor imports no room; a room and its script import, of other rooms, only readers upstream."""
    order = [*dict.fromkeys(script(stage) for stage in stages(root).values()), *APPS]
    rooms = {path.parent.name for path in root.glob("stages/*/__init__.py")} - FLOORS
    faults = []
    for file in code(root):
        home, *inner = file.relative_to(root).with_suffix("").parts
        me = inner[0] if home == "src" or (len(inner) > 1 and inner[0] in rooms) else None  # None: the ground floor
        upstream = order[: order.index(me)] if me in order else order
        for module in sorted(set(imports(file, root))):
            _, _, rest = module.partition("stages.")
            room, _, member = rest.partition(".")
            name = file.relative_to(root).as_posix()
            if module.partition(".")[0] == "src":
                faults.append(f"{name} imports the script {module}")
            elif room not in rooms or room == me or not source(module, root):
                continue
            elif me is None:
                faults.append(f"{name} is on the ground floor and imports the room {room}")
            elif me == "select" and member == "knobs":
                continue  # it checks every section of params.yaml
            elif room not in upstream:
                faults.append(f"{name} imports {module}, which is downstream")
            elif member not in (READERS.get(room), "knobs"):
                faults.append(f"{name} imports {module}, which is not the reader of {room}")
    return faults


def paths_are_edges(root: Path) -> list[str]:
    """Every path in a command is a dep or an out of that stage; select may name the home of per-layer outs."""
    everything = stages(root)
    produced = [path for stage in everything.values() for path in paths(stage, "outs", "metrics", "plots")]
    homes = {path.rpartition("/")[0] for path in produced if "${item.layer}" in path}
    faults = []
    for name, stage in everything.items():
        known = {*paths(stage, "deps", "outs", "metrics", "plots"), *(homes if name == "select" else ())}
        words = [word for word in stage["cmd"].split()[3:] if "/" in word]
        faults += [f"{name}'s command has {word}, which is no dep or out" for word in words if word not in known]
    return faults


def edges_are_produced(root: Path) -> list[str]:
    """A dep that is no code is an out of a stage above, or lies in one, or holds some."""
    faults, produced = [], []
    for name, stage in stages(root).items():
        for dep in paths(stage, "deps"):
            if dep.startswith(("src/", "stages/")):
                continue
            if not any(out == dep or dep.startswith(f"{out}/") or out.startswith(f"{dep}/") for out in produced):
                faults.append(f"{name} reads {dep}, which no stage above it writes")
        produced += paths(stage, "outs", "metrics", "plots")
    return faults


def only_tracking_imports_mlflow(root: Path) -> list[str]:
    return [
        f"{file.relative_to(root).as_posix()} imports mlflow"
        for file in code(root)
        if file != root / "stages/tracking.py"
        and any(module.partition(".")[0] == "mlflow" for module in imports(file, root))
    ]


def knobs_are_light(root: Path) -> list[str]:
    """What select loads to check params.yaml takes no time: the library, pydantic, and other such modules."""
    light = {"stages.auto", "stages.params", "stages.door", "stages.targets"}
    files = [*sorted(root.glob("stages/**/knobs.py")), root / "stages/select/whole.py", root / "stages/params.py"]
    return [
        f"{file.relative_to(root).as_posix()} imports {module}, which select would have to wait for"
        for file in files
        for module in sorted(set(imports(file, root)))
        if not (module in light or module.endswith(".knobs"))
        if module.partition(".")[0] not in {*sys.stdlib_module_names, "pydantic", "pydantic_core", "yaml"}
    ]


def nothing_runs_on_opening(root: Path) -> list[str]:
    """What `git grep -nE "pickle|torch\\.load"` would find; one file may open tensors, and nothing else, by it."""
    return [
        f"{file.relative_to(root).as_posix()}:{number} {line.strip()}"
        for file in code(root)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN.search(line) and not (file == root / OPENER and HARMLESS.search(line))
    ]


def sections_are_known(root: Path) -> list[str]:
    """params.yaml holds exactly the known sections, dvc.yaml tracks only keys that are there, select all of them."""
    values = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    faults = [f"params.yaml has {name}, which SECTIONS lacks" for name in values if name not in SECTIONS]
    faults += [f"params.yaml lacks {name}" for name in SECTIONS if name not in values]
    faults += [
        f"select checks {name}, but is not run again when it changes"
        for name in SECTIONS
        if name not in stages(root)["select"]["params"]
    ]
    for name, stage in stages(root).items():
        for key in stage.get("params", []):
            place: Any = values
            for part in key.split("."):
                place = place.get(part, KeyError) if isinstance(place, dict) else KeyError
            if place is KeyError:
                faults.append(f"{name} depends on the param {key}, which is not in params.yaml")
    return faults


def doors_are_signs(root: Path) -> list[str]:
    """A room's __init__ is a docstring; that of stages is empty."""
    faults = []
    for file in sorted(root.glob("stages/**/__init__.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        sign = ast.get_docstring(tree) is not None
        if len(tree.body) != sign or sign != (file.parent.name != "stages"):
            faults.append(f"{file.relative_to(root).as_posix()} is not what the door of a room should be")
    return faults


RULES = [
    code_is_declared,
    floors_are_kept,
    paths_are_edges,
    edges_are_produced,
    only_tracking_imports_mlflow,
    knobs_are_light,
    nothing_runs_on_opening,
    sections_are_known,
    doors_are_signs,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule: Callable[[Path], list[str]]):
    assert rule(ROOT) == []


def test_more_trials_run_nothing_before_tune():
    """`dvc exp run -S tune.calls=30`; select, which checks all, takes no time, and track runs after all the others."""
    tracked = {name for name, stage in stages(ROOT).items() if {"tune", "tune.calls"} & set(stage.get("params", []))}
    assert tracked == {"select", "tune", "track"}


# --- the rules can fail ---------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def add(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def edit(root: Path, stage: str, kind: str, *, add: str | None = None, drop: str | None = None) -> None:
    """Change a list of a stage of dvc.yaml."""
    whole = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))
    entries = whole["stages"][stage][kind]
    if drop:
        entries.remove(drop)
    if add:
        entries.append(add)
    (root / "dvc.yaml").write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")


def recommand(root: Path, old: str, new: str) -> None:
    text = (root / "dvc.yaml").read_text(encoding="utf-8")
    assert old in text
    (root / "dvc.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")


BREAKS: list[tuple[Callable[[Path], list[str]], Callable[[Path], None], str]] = [
    (
        code_is_declared,
        lambda root: edit(root, "extract", "deps", drop="stages/lm.py"),
        "extract runs stages/lm.py, which is not among its deps",
    ),
    (  # through another module, and inside a function
        code_is_declared,
        lambda root: add(
            root / "stages/door.py", "\n\ndef late():\n    from stages import splice\n    return splice\n"
        ),
        "select runs stages/splice.py, which is not among its deps",
    ),
    (
        code_is_declared,
        lambda root: edit(root, "report", "deps", add="stages/splice.py"),
        "report lists stages/splice.py, which it does not run",
    ),
    (
        code_is_declared,
        lambda root: edit(root, "report", "deps", add="stages/sae"),
        "report lists stages/sae, of which it runs nothing",
    ),
    (
        code_is_declared,
        lambda root: edit(root, "extract", "deps", add="stages/fetch", drop="stages/fetch/read.py"),
        "extract lists all of stages/fetch; it may list the reader that it imports",
    ),
    (
        code_is_declared,
        lambda root: edit(root, "train", "deps", add="stages/sae/fit.py"),
        "train lists stages/sae/fit.py and its folder",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "stages/train/train.py", "\nfrom stages.extract import contexts\n"),
        "stages/train/train.py imports stages.extract.contexts, which is not the reader of extract",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "stages/fetch/corpus.py", "\nfrom ..extract.shards import SPLITS\n"),
        "stages/fetch/corpus.py imports stages.extract.shards, which is downstream",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "src/extract.py", "\nfrom stages.report import results\n"),
        "src/extract.py imports stages.report.results, which is downstream",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "stages/sae/fit.py", "\nimport stages.train.train\n"),
        "stages/sae/fit.py is on the ground floor and imports the room train",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "stages/lm.py", "\nfrom stages.fetch.read import lm_meta\n"),
        "stages/lm.py is on the ground floor and imports the room fetch",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "stages/train/train.py", "\nfrom src import fetch\n"),
        "stages/train/train.py imports the script src.fetch",
    ),
    (
        paths_are_edges,
        lambda root: recommand(root, "src.fetch lm data/lm", "src.fetch lm data/model"),
        "fetch_lm's command has data/model, which is no dep or out",
    ),
    (
        paths_are_edges,
        lambda root: recommand(root, "data/merged data/inverted", "data/merged reports/plots"),
        "select's command has reports/plots, which is no dep or out",
    ),
    (
        edges_are_produced,
        lambda root: edit(root, "extract", "deps", add="data/nothing"),
        "extract reads data/nothing, which no stage above it writes",
    ),
    (
        only_tracking_imports_mlflow,
        lambda root: add(root / "src/report.py", "\n\ndef f():\n    import mlflow.client\n"),
        "src/report.py imports mlflow",
    ),
    (
        knobs_are_light,
        lambda root: add(root / "stages/merge/knobs.py", "\nfrom stages.merge import groups\n"),
        "stages/merge/knobs.py imports stages.merge.groups, which select would have to wait for",
    ),
    (
        knobs_are_light,
        lambda root: add(root / "stages/params.py", "\n\ndef late():\n    import numpy\n"),
        "stages/params.py imports numpy, which select would have to wait for",
    ),
    (
        sections_are_known,
        lambda root: edit(root, "select", "params", drop="merge"),
        "select checks merge, but is not run again when it changes",
    ),
    (
        nothing_runs_on_opening,
        lambda root: add(root / "stages/sae/disk.py", "\nload = torch.load\n"),
        "load = torch.load",
    ),
    (
        nothing_runs_on_opening,
        lambda root: add(root / "stages/convert/state.py", '\n\ndef f():\n    return torch.load("x.pt")\n'),
        'return torch.load("x.pt")',
    ),
    (
        floors_are_kept,
        lambda root: add(root / "stages/serve/app.py", "\nfrom stages.convert import read\n"),
        "stages/serve/app.py imports stages.convert.read, which is downstream",
    ),
    (
        sections_are_known,
        lambda root: add(root / "params.yaml", "\ncook: {}\n"),
        "params.yaml has cook, which SECTIONS lacks",
    ),
    (
        sections_are_known,
        lambda root: edit(root, "train", "params", add="targets.nothing"),
        "train depends on the param targets.nothing, which is not in params.yaml",
    ),
    (
        doors_are_signs,
        lambda root: add(root / "stages/train/__init__.py", "\nfrom stages.train.train import train\n"),
        "stages/train/__init__.py is not what the door of a room should be",
    ),
]


@pytest.mark.parametrize(
    "rule, harm, fault", BREAKS, ids=[f"{rule.__name__}-{i}" for i, (rule, _, _) in enumerate(BREAKS)]
)
def test_a_broken_house_is_told(
    house: Path, rule: Callable[[Path], list[str]], harm: Callable[[Path], None], fault: str
):
    before = rule(house)
    harm(house)
    assert any(fault in found for found in set(rule(house)) - set(before))
