"""A whole project of 150 labelled lines, each with a vector beside it; its stages run in this process, in seconds."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
LINES = ("cats purr and sleep on warm mats", "rockets burn fuel and leave the earth", "bread rises in a hot oven")
SMALL = {
    "layers": [0],
    "machine.threads": 1,
    "fetch.corpus.min_chars": 0,
    "fetch.corpus.near_duplicates": None,
    "extract.batch_size": 16,
    "extract.shard_rows": 64,
    "tune.run": False,
    "train.from_tune": [],
    "train.latents": 32,
    "train.k": 4,
    "train.auxk_latents": 8,
    "train.batch_size": 32,
    "controls.run": False,
    "evaluate.tasks.sources": [],
    "cluster.map.method": "pca",
    "cluster.stability.bootstraps": 1,
}


def make(folder: Path) -> None:
    """params.yaml, for the sentence model of the default embedder until it is changed, and the lines."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    source = {"source": "lines.jsonl", "label": "topic"}
    for key, value in {**SMALL, "fetch.corpus.sources": [source]}.items():
        put(values, key, value)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    random = np.random.default_rng(0)
    with (folder / "lines.jsonl").open("w") as file:
        for number in range(150):
            topic = number % len(LINES)
            vector = (np.eye(8)[topic] + 0.1 * random.standard_normal(8)).tolist()
            line = {"id": number, "text": f"{LINES[topic]} {number}", "topic": f"t{topic}", "emb": vector}
            print(json.dumps(line), file=file)


def put(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        values = values[part]
    values[last] = value


def change(**given: Any) -> None:
    """Keys of params.yaml, `__` for a dot."""
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for key, value in given.items():
        put(values, key.replace("__", "."), value)
    Path("params.yaml").write_text(yaml.safe_dump(values))


def run(*names: str) -> None:
    """Stages of dvc.yaml in this process, as DVC would start them."""
    known = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name in names or [name for name in known if name != "track"]:
        command = known[name]["cmd"].replace("${item.layer}", "0").replace("${layers[-1]}", "0")
        _, _, module, *words = command.split()
        importlib.import_module(module).main(*words)
        del sys.modules[module]  # other tests run it as `python -m` does, which warns where it is there already


def of_vectors() -> None:
    """The vectors of the lines are what is looked at."""
    source = {"source": "lines.jsonl", "label": "topic", "id": "id", "text": "text", "vector": "emb"}
    change(fetch__lm={"kind": "vectors", "source": None, "revision": None, "trust_remote_code": False})
    change(fetch__corpus__sources=[source], explain__embedder=None)
