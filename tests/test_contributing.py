"""The recipes of CONTRIBUTING.md, followed to the letter."""

import re
import shutil
from pathlib import Path

import pytest
import test_layout
import torch
import yaml
from torch import Tensor

from strata import auto
from strata.auto import Size
from strata.sae import disk
from strata.sae.engine.pattern import Pattern
from strata.sae.engine.preactivations import Preactivations
from strata.sae.knobs import Train
from strata.sae.rules.base import Pass, Rule, Weights, exact_above
from strata.sae.training.autoencoder import Autoencoder, Scale, fold
from strata.sae.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_what_is_named_is_there(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|apps|stages|strata|tests|notebooks|reports/figures)/[\w./-]+|\.ci/run)`", text)
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert named and not [path for path in (*named, *linked) if not (ROOT / path).exists()]
    assert not re.findall(r"TODO|FIXME|\b[A-Z]+_HERE\b", text), "nothing was left to be filled in"


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
