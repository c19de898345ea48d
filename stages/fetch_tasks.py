"""Stage fetch_tasks: bring in binary tasks that others made, and list their distinct prompts."""

from pathlib import Path
from typing import Any

from strata.corpus.place import whole_folder
from strata.corpus.read import LANGUAGE
from strata.run import params
from strata.run.files import write_json
from strata.tasks import prompts
from strata.tasks.knobs import Tasks


def main(target: str) -> None:
    """TARGET: the folder that gets the tasks of evaluate.tasks and their prompts.

    Example: dvc repro fetch_tasks
    """
    evaluate, fetch = params.load("evaluate", dict[str, Any]), params.load("fetch", dict[str, Any])
    knobs = params.check(evaluate.get("tasks"), Tasks, "params.yaml: evaluate.tasks")
    read_by_language_model = fetch.get("lm", {}).get("kind") == LANGUAGE

    with whole_folder(Path(target)) as folder:
        if evaluate.get("run") and knobs.sources and read_by_language_model:
            prompts.write(knobs, params.load("seed", int), folder)
        else:
            write_json(folder / "meta.json", {"skipped": True})
