"""The house rules: who may import whom, and that dvc.yaml names what each stage runs, reads and writes.

Each rule is a function from the root of a checkout to its faults, and each is shown a broken checkout.
"""

import ast
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.select.whole import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
HOUSES = ("strata", "stages", "apps", "src")  # each stands on those before it
FORBIDDEN = re.compile(r"pickle|torch\.load")
HARMLESS = re.compile(r"torch\.load\(path, map_location=\"cpu\", weights_only=True\)|import UnpicklingError")
REFUSED = "allow_pickle=False"  # of NumPy, which then writes and reads plain numbers alone
OPENER = "strata/formats/state.py"  # the one file that opens a foreign `.pt`
BY_PEOPLE = ("labels.yaml",)  # what git keeps, and no stage writes
TRACKING = "strata/experiments/tracking.py"  # the one file that imports mlflow


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
    return file if module.partition(".")[0] in HOUSES and file.is_file() else None


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
    return sorted(path for house in HOUSES for path in (root / house).rglob("*.py"))


def is_code(path: str) -> bool:
    return path.startswith(tuple(f"{house}/" for house in HOUSES))


# --- the rules ----------------------------------------------------------------------------------------------------


def code_is_declared(root: Path) -> list[str]:
    """The code that a stage can load is exactly what its deps name: files, and folders of which it loads every file."""
    faults = []
    for name, stage in stages(root).items():
        needed = closure(root / "src" / f"{script(stage)}.py", root)
        listed = [path for path in paths(stage, "deps") if is_code(path)]
        folders = [path for path in listed if not path.endswith(".py")]
        covered = {file for file in needed if any(file == path or file.startswith(f"{path}/") for path in listed)}
        faults += [f"{name} runs {file}, which is not among its deps" for file in sorted(needed - covered)]
        for path in listed:
            inside = {file.relative_to(root).as_posix() for file in (root / path).rglob("*.py")} - needed
            if path in folders:
                unused = sorted(file for file in inside if not file.endswith("/__init__.py"))
                faults += [f"{name} lists all of {path}, but does not run {file}" for file in unused]
            elif path not in needed:
                faults.append(f"{name} lists {path}, which it does not run")
            elif any(path.startswith(f"{folder}/") for folder in folders):
                faults.append(f"{name} lists {path} and its folder")
    return faults


def a_stage_is_a_key(root: Path) -> list[str]:
    """`ls stages` is the keys of dvc.yaml, and each has the script of its name."""
    keys = stages(root)
    there = {path.relative_to(root / "stages").parts[0].removesuffix(".py") for path in (root / "stages").rglob("*.py")}
    there.discard("__init__")
    faults = [f"stages/{name} is no stage of dvc.yaml" for name in sorted(there - keys.keys())]
    faults += [f"the stage {name} has no module in stages/" for name in keys if name not in there]
    return faults + [f"the stage {name} runs src.{script(keys[name])}" for name in keys if script(keys[name]) != name]


def floors_are_kept(root: Path) -> list[str]:
    """A house imports those below it, a stage only stages above it in dvc.yaml; nothing imports a script."""
    order, faults = [*stages(root)], []
    for file in code(root):
        house, *inner = file.relative_to(root).with_suffix("").parts
        for module in sorted(set(imports(file, root))):
            other, _, rest = module.partition(".")
            if not source(module, root):
                continue
            name, room = file.relative_to(root).as_posix(), rest.partition(".")[0]
            if HOUSES.index(other) > HOUSES.index(house) or other == "src":
                faults.append(f"{name} imports {module}, which stands above it")
            elif house == other == "stages" and room != inner[0]:
                if inner[0] == "select" and module.endswith(".knobs"):
                    continue  # it checks every section of params.yaml
                if order.index(room) > order.index(inner[0]):
                    faults.append(f"{name} imports {module}, which is downstream")
    return faults


def nothing_goes_in_a_circle(root: Path) -> list[str]:
    """Neither files import each other in a circle, nor folders, nor the rooms of a house."""
    edges = {
        file.relative_to(root).as_posix(): {
            there.relative_to(root).as_posix() for module in imports(file, root) if (there := source(module, root))
        }
        for file in code(root)
        if file.name != "__init__.py"
    }
    levels: list[Callable[[str], str]] = [
        lambda path: path,
        lambda path: path if path.count("/") == 1 else path.rpartition("/")[0],  # a module beside the rooms is one
        lambda path: "/".join(path.split("/")[:2]),
    ]
    faults = []
    for level in levels:
        graph: dict[str, set[str]] = {}
        for path, others in edges.items():
            graph.setdefault(level(path), set()).update({level(other) for other in others} - {level(path)})
        try:
            TopologicalSorter({node: sorted(others) for node, others in sorted(graph.items())}).prepare()
        except CycleError as circle:
            faults.append(f"{', '.join(sorted(set(circle.args[1])))} import each other in a circle")
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
    """A dep that is no code is an out of a stage above, or lies in one, or holds some; or people write it."""
    faults, produced = [], []
    for name, stage in stages(root).items():
        for dep in paths(stage, "deps"):
            if is_code(dep) or dep in BY_PEOPLE:
                continue
            if not any(out == dep or dep.startswith(f"{out}/") or out.startswith(f"{dep}/") for out in produced):
                faults.append(f"{name} reads {dep}, which no stage above it writes")
        produced += paths(stage, "outs", "metrics", "plots")
    return faults


def only_tracking_imports_mlflow(root: Path) -> list[str]:
    return [
        f"{file.relative_to(root).as_posix()} imports mlflow"
        for file in code(root)
        if file != root / TRACKING and any(module.partition(".")[0] == "mlflow" for module in imports(file, root))
    ]


def knobs_are_light(root: Path) -> list[str]:
    """What select loads to check params.yaml takes no time: the library, pydantic, and other such modules."""
    light = {
        *("strata.auto", "strata.rows.size", "strata.run.params", "strata.run.door", "strata.verdict.targets"),
        "strata.sae.engine.nonlinearity",
    }
    files = [
        *sorted(path for house in HOUSES for path in root.glob(f"{house}/**/*knobs.py")),
        *(root / module for module in ("stages/select/whole.py", "strata/run/params.py")),
        root / "strata/sae/engine/nonlinearity.py",
    ]
    return [
        f"{file.relative_to(root).as_posix()} imports {module}, which select would have to wait for"
        for file in files
        for module in sorted(set(imports(file, root)))
        if not (module == "torch" and file.stem == "nonlinearity")  # for types alone
        if not (module in light or module.endswith("knobs"))
        if module.partition(".")[0] not in {*sys.stdlib_module_names, "pydantic", "pydantic_core", "yaml"}
    ]


def nothing_runs_on_opening(root: Path) -> list[str]:
    """What `git grep -nE "pickle|torch\\.load"` would find; one file may open tensors, and nothing else, by it."""
    return [
        f"{file.relative_to(root).as_posix()}:{number} {line.strip()}"
        for file in code(root)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN.search(line.replace(REFUSED, "")) and not (file == root / OPENER and HARMLESS.search(line))
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
    """The __init__ of a room is a docstring, and nothing else; strata's own is the front door."""
    faults = []
    rooms = {path for house in HOUSES[:3] for path in root.glob(f"{house}/**/__init__.py")}
    for file in sorted(rooms - {root / "strata/__init__.py"}):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if len(tree.body) != 1 or ast.get_docstring(tree) is None:
            faults.append(f"{file.relative_to(root).as_posix()} is not what the door of a room should be")
    return faults


def the_front_door_is_lazy(root: Path) -> list[str]:
    """`import strata` loads nothing; what a type checker sees there is what is loaded later."""
    tree = ast.parse((root / "strata/__init__.py").read_text(encoding="utf-8"))
    loaded = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        str(alias.name if isinstance(node, ast.Import) else node.module) for node in loaded for alias in node.names
    }
    faults = [f"import strata loads {name}" for name in sorted(names - {"importlib", "importlib.metadata", "typing"})]
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        str(alias.asname): str(node.module)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    named = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    homes = {name: f"strata.{home}" for name, home in ast.literal_eval(named["HOMES"]).items()}
    homes |= dict.fromkeys(ast.literal_eval(named["ROOMS"]), "strata.front")
    return faults + [f"strata.{name} is from {seen.get(name)} for a type checker, and from {homes.get(name)}"
        for name in sorted(seen.keys() | homes.keys()) if seen.get(name) != homes.get(name)]  # fmt: skip


RULES = [
    code_is_declared,
    a_stage_is_a_key,
    floors_are_kept,
    nothing_goes_in_a_circle,
    paths_are_edges,
    edges_are_produced,
    only_tracking_imports_mlflow,
    knobs_are_light,
    nothing_runs_on_opening,
    sections_are_known,
    doors_are_signs,
    the_front_door_is_lazy,
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
    for name in HOUSES:
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
        lambda root: edit(root, "extract", "deps", drop="strata/corpus/read.py"),
        "extract runs strata/corpus/read.py, which is not among its deps",
    ),
    (  # through another module, and inside a function
        code_is_declared,
        lambda root: add(
            root / "strata/run/door.py", "\n\ndef late():\n    from strata import seeds\n    return seeds\n"
        ),
        "select runs strata/seeds.py, which is not among its deps",
    ),
    (
        code_is_declared,
        lambda root: edit(root, "report", "deps", add="strata/seeds.py"),
        "report lists strata/seeds.py, which it does not run",
    ),
    (
        code_is_declared,
        lambda root: edit(root, "interpret", "deps", add="strata/training"),
        "interpret lists all of strata/training, but does not run strata/training/fit.py",
    ),
    (
        code_is_declared,
        lambda root: (root / "strata/merging/unused.py").touch(),
        "merge lists all of strata/merging, but does not run strata/merging/unused.py",
    ),
    (
        code_is_declared,
        lambda root: edit(root, "train", "deps", add="strata/training/fit.py"),
        "train lists strata/training/fit.py and its folder",
    ),
    (
        a_stage_is_a_key,
        lambda root: (root / "stages/helpers.py").touch(),
        "stages/helpers is no stage of dvc.yaml",
    ),
    (
        a_stage_is_a_key,
        lambda root: (root / "stages/tune.py").unlink(),
        "the stage tune has no module in stages/",
    ),
    (
        a_stage_is_a_key,
        lambda root: recommand(root, "python -m src.tune", "python -m src.train"),
        "the stage tune runs src.train",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "stages/fetch_corpus.py", "\nfrom stages import extract\n"),
        "stages/fetch_corpus.py imports stages.extract, which is downstream",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "stages/extract.py", "\nfrom .report import results\n"),
        "stages/extract.py imports stages.report.results, which is downstream",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "strata/training/fit.py", "\nimport stages.train.train\n"),
        "strata/training/fit.py imports stages.train.train, which stands above it",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "stages/report/page.py", "\nfrom apps.serve import explainer\n"),
        "stages/report/page.py imports apps.serve.explainer, which stands above it",
    ),
    (
        floors_are_kept,
        lambda root: add(root / "src/train.py", "\nfrom src import tune\n"),
        "src/train.py imports src.tune, which stands above it",
    ),
    (
        nothing_goes_in_a_circle,
        lambda root: add(root / "strata/sae/engine/pattern.py", "\nfrom strata.sae.engine import dispatch\n"),
        "strata/sae/engine/dispatch.py, strata/sae/engine/pattern.py import each other in a circle",
    ),
    (
        nothing_goes_in_a_circle,
        lambda root: add(root / "strata/sae/engine/compiled.py", "\nfrom strata.training.rules import base\n"),
        "strata/sae/engine, strata/training/rules import each other in a circle",
    ),
    (
        nothing_goes_in_a_circle,
        lambda root: add(root / "strata/sae/disk.py", "\nfrom strata.interpretation import statistics\n"),
        "strata/interpretation, strata/sae import each other in a circle",
    ),
    (
        paths_are_edges,
        lambda root: recommand(root, "src.fetch_lm data/lm", "src.fetch_lm data/model"),
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
        lambda root: add(root / "strata/merging/knobs.py", "\nfrom strata.merging import groups\n"),
        "strata/merging/knobs.py imports strata.merging.groups, which select would have to wait for",
    ),
    (
        knobs_are_light,
        lambda root: add(root / "strata/run/params.py", "\n\ndef late():\n    import numpy\n"),
        "strata/run/params.py imports numpy, which select would have to wait for",
    ),
    (
        sections_are_known,
        lambda root: edit(root, "select", "params", drop="merge"),
        "select checks merge, but is not run again when it changes",
    ),
    (
        nothing_runs_on_opening,
        lambda root: add(root / "strata/sae/disk.py", "\nload = torch.load\n"),
        "load = torch.load",
    ),
    (
        nothing_runs_on_opening,
        lambda root: add(root / OPENER, '\n\ndef f():\n    return torch.load("x.pt")\n'),
        'return torch.load("x.pt")',
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
        the_front_door_is_lazy,
        lambda root: add(root / "strata/__init__.py", "\nimport torch\n"),
        "import strata loads torch",
    ),
    (
        doors_are_signs,
        lambda root: add(root / "stages/train/__init__.py", "\nfrom stages.train.train import main\n"),
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


@pytest.mark.parametrize(
    ("file", "again"),
    [
        (
            "strata/training/fit.py",
            {"tune", "train", "controls", "stability", "evaluate"},
        ),
        ("strata/training/rules/topk.py", {"tune", "train", "controls", "stability", "evaluate"}),
        ("strata/measure/controls.py", {"train", "controls", "evaluate"}),
        ("strata/interpretation/questions.py", {"explain"}),
        ("strata/front/training.py", set()),
        ("apps/serve/app.py", set()),
    ],
)
def test_a_change_runs_again_what_it_must_and_nothing_else(file: str, again: set[str]) -> None:
    """Stages that only read SAEs follow when an SAE's bytes change, not when the training loop does."""
    assert (ROOT / file).is_file()
    names = {
        name for name in stages(ROOT) for path in paths(stages(ROOT)[name], "deps") if f"{file}/".startswith(f"{path}/")
    }
    assert names == again


def test_git_ignores_the_homes_of_outs() -> None:
    """Else DVC writes a .gitignore into each, which changes with the layers and is left behind when one goes back."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    outs = [
        path for stage in stages(ROOT).values() for path in paths(stage, "outs", "plots") if "${item.layer}" in path
    ]
    homes = {f"/{path.rpartition('/')[0]}/" for path in outs if path.startswith("reports/")}
    assert homes and homes <= set(ignored)
