"""The readers of the files of fetch_tasks and extract_tasks.

`data/tasks/prompts/`
    prompts.jsonl: a line for each distinct prompt, its text and which end of it is kept where it is too long;
    tasks.json: the tasks; meta.json: how many there are of both, and hashes.
`data/tasks/activations/<L>/`
    shard-*.safetensors: x (row, width) bfloat16; prompt (prompt,) its number; rows (prompt,) how many of x are its own;
    meta.json: what the rows come from, and hashes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from strata.run.files import check_hashes, read_json, read_meta
from strata.tasks.knobs import Keep

PROMPTS, TASKS = "prompts.jsonl", "tasks.json"
BLOCK, AT_ONCE = 4096, 512  # rows and prompts that are read together, unless one prompt has more rows
META = {"hook": str, "layer": int, "width": int, "prompts": int, "pooling": list, "model": dict, "shards": list}


@dataclass(frozen=True)
class Task:
    """A binary task: the numbers of its ``prompts``, and their ``targets``, 1 for the class ``positive``, else 0.

    ``ood_prompts``, ``ood_targets``: the same of prompts of another kind, such as translations, by which the probes of
    the regime ood are judged; none where there are no such prompts.
    """

    name: str
    source: str
    positive: str
    prompts: list[int]
    targets: list[int]
    ood_prompts: list[int] = field(default_factory=list)
    ood_targets: list[int] = field(default_factory=list)


def meta(folder: Path) -> dict[str, Any]:
    """Read meta.json of `data/tasks/prompts/`; it may say "skipped"."""
    return read_meta(folder / "meta.json", {"prompts": int, "tasks": list, "files": list}, "fetch_tasks")


def tasks(folder: Path) -> list[Task]:
    """Read the tasks. Raises BadInput where a file is not as fetch_tasks left it."""
    check_hashes(folder, meta(folder)["files"], "fetch_tasks")
    return [Task(**task) for task in read_json(folder / TASKS)]


def prompts(folder: Path) -> Iterator[tuple[str, Keep]]:
    """Yield each distinct prompt, and which end of it is kept."""
    check_hashes(folder, meta(folder)["files"], "fetch_tasks")
    with (folder / PROMPTS).open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["prompt"], row["keep"]


@dataclass(frozen=True)
class PromptRows:
    """The stored rows of a layer's prompts. ``meta``: the content of meta.json."""

    folder: Path
    meta: dict[str, Any]

    @property
    def prompts(self) -> int:
        return self.meta["prompts"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield x (row, width), the numbers of their prompts (prompt,), and how many rows each of these has.

        A prompt's rows stand together, in the order of its tokens. A shard is hashed before its rows are read.
        """
        for shard in self.meta["shards"]:
            check_hashes(self.folder, [shard], "extract_tasks")
            with safe_open(self.folder / shard["file"], "pt") as file:
                prompt, rows = file.get_tensor("prompt").long(), file.get_tensor("rows").long()
                ends = rows.cumsum(0)
                x, first, row = file.get_slice("x"), 0, 0
                while first < len(prompt):
                    # As many whole prompts as BLOCK rows hold, one at the least.
                    end = int(torch.searchsorted(ends, row + BLOCK, right=True))
                    end = min(max(end, first + 1), first + AT_ONCE)
                    stop = int(ends[end - 1])
                    yield x[row:stop], prompt[first:end], rows[first:end]
                    first, row = end, stop


def open_rows(folder: Path) -> PromptRows | None:
    """Open `data/tasks/activations/<L>/`; None where extract_tasks was skipped."""
    meta = read_meta(folder / "meta.json", META, "extract_tasks")
    return None if meta.get("skipped") else PromptRows(folder, meta)
