"""Read finished runs out of git: experiments of DVC, and commits that hold a run.

A run is its params.yaml, its dvc.lock and its summary. All three are in git, so that no file of the checkout changes.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from apps.git import git, utf8
from strata.experiments.experiment import flat
from strata.run.door import BadInput, near
from strata.run.params import check, parse_yaml

SUMMARY, PARAMS, LOCK = "reports/summary.json", "params.yaml", "dvc.lock"
EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2}/[0-9a-f]{38})/(.+)")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML was built with it
CODE = ("src/", "stages/", "strata/")


class Entry(BaseModel, frozen=True):
    """A file or folder that a stage read or wrote, and DVC's hash of it."""

    path: str
    md5: str | None = None


class Stage(BaseModel, frozen=True):
    """What dvc.lock says of a stage. ``params``: file -> the keys that it ran with, and their values."""

    deps: list[Entry] = []
    outs: list[Entry] = []
    params: dict[str, dict[str, Any] | None] = {}


class Lock(BaseModel, frozen=True):
    """What of dvc.lock is read here."""

    stages: dict[str, Stage]


@dataclass(frozen=True)
class Run:
    """One run. ``name``: an experiment's name, or what the user called a commit. ``commit``: its full hash.

    What is read of it raises BadInput where a file is broken, or is not as the pipeline writes it.
    """

    name: str
    commit: str

    @cached_property
    def params(self) -> dict[str, Any]:
        return parse_yaml(self._text(PARAMS), Path(f"{self.name}:{PARAMS}"))

    @cached_property
    def knobs(self) -> dict[str, str]:
        """The params by their full names, each value as text, without the seed."""
        return {name: value for name, value in flat(self.params).items() if name != "seed"}

    @property
    def seed(self) -> int:
        seed = self.params.get("seed")
        if not isinstance(seed, int):
            raise BadInput(f"{self.name}:{PARAMS}: seed is {seed!r}, not a whole number")
        return seed

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """What dvc.lock says of each stage, without those of layers that are no longer asked for, which it keeps."""
        try:
            lock = yaml.load(self._text(LOCK), LOADER)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise BadInput(f"{self.name}:{LOCK} is not valid YAML: {' '.join(str(error).split())}") from None
        known = check(lock, Lock, f"{self.name}:{LOCK}").stages
        if not isinstance(layers := self.params.get("layers"), list):
            return known
        asked = tuple(f"@{layer}" for layer in layers)
        return {name: stage for name, stage in known.items() if "@" not in name or name.endswith(asked)}

    @cached_property
    def summary(self) -> dict[str, float | None]:
        try:
            summary = json.loads(self._text(SUMMARY))
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{self.name}:{SUMMARY} is not valid JSON: {error}") from None
        if not isinstance(summary, dict):
            raise BadInput(f"{self.name}:{SUMMARY} is no object of names and numbers")
        return summary

    def code(self, stages: Sequence[str]) -> dict[str, str | None]:
        """Return the hash of each file and folder of code that ``stages``, and their layers, ran."""
        return {
            dep.path: dep.md5
            for name, stage in self.stages.items()
            if name.partition("@")[0] in stages
            for dep in stage.deps
            if dep.path.startswith(CODE)
        }

    def made(self, path: str) -> str | None:
        """Return DVC's hash of an output; None where no stage has written it."""
        outs = (out for stage in self.stages.values() for out in stage.outs)
        return next((out.md5 for out in outs if out.path == path), None)

    def check(self) -> None:
        """Raise BadInput where the run is not finished or readable, or params.yaml was changed after the training."""
        for path in (PARAMS, LOCK, SUMMARY):
            if not _has(self.commit, path):
                raise BadInput(f"{self.name} has no {path}: it holds no finished run of the pipeline")
        _ = self.seed, self.summary  # that they can be read

        for stage, facts in self.stages.items():
            ran = facts.params.get(PARAMS) or {}
            if not stage.startswith("train@"):
                continue
            for name, value in flat(ran).items():
                if (now := self.knobs.get(name, str(self.seed))) != value:
                    raise BadInput(
                        f"{self.name}: {name} is {now} in params.yaml, but {stage} last ran with {value}; run "
                        "`dvc repro` and commit what it changes"
                    )

    def _text(self, path: str) -> str:
        text = git("show", f"{self.commit}:./{path}")
        assert text is not None, path
        return utf8(text, f"{self.name}:{path}")


class History:
    """The runs of this repository. Raises BadInput where there is none."""

    def __init__(self) -> None:
        if git("rev-parse", "--git-dir") is None:
            raise BadInput("there is no git repository here, so no experiment or commit; name two SAE folders instead")

    @cached_property
    def experiments(self) -> list[tuple[str, str, str]]:
        """Every experiment: its name, its commit, and the commit that it started from."""
        lines = (git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or "").splitlines()
        split = [line.partition(" ") for line in lines]
        matches = [(commit, EXPERIMENT.fullmatch(ref)) for commit, _, ref in split]
        return [(match[2], commit, match[1].replace("/", "")) for commit, match in matches if match]

    @cached_property
    def heads(self) -> dict[str, str]:
        """Branch or tag -> its commit."""
        form = "--format=%(refname:short) %(objectname) %(*objectname)"  # the last of a tag that has a message
        lines = (git("for-each-ref", form, "refs/heads", "refs/tags") or "").splitlines()
        return {words[0]: words[-1] for words in map(str.split, lines)}

    def find(self, word: str) -> Run:
        """Return the run that a word names: an experiment, or whatever git reads as a commit."""
        named = [(commit, baseline) for name, commit, baseline in self.experiments if name == word]
        head = (git("rev-parse", "HEAD") or "").strip()
        chosen = [commit for commit, baseline in named if baseline == head or len(named) == 1]
        if named and not chosen:
            commits = ", ".join(commit[:9] for commit, _ in named)
            raise BadInput(f"{word} is the name of {len(named)} experiments; name one of their commits: {commits}")
        if not chosen:
            commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{word}^{{commit}}")
            if commit is None:
                known = [*(name for name, _, _ in self.experiments), *self.heads]
                raise BadInput(f"{word} is no experiment, no commit and no folder{near(word, known)}")
            chosen = [commit.strip()]
        run = Run(word, chosen[0])
        run.check()
        return run

    def like(self, run: Run, stages: Sequence[str]) -> list[Run]:
        """Return ``run``, and the others that differ from it in their seed alone, one for each seed, by seed.

        The code that ``stages`` ran must be the same, too. Branches, tags and experiments are looked at; those that
        cannot be read are passed over, because the user named none of them.
        """
        known = [(name, commit) for name, commit, _ in self.experiments] + list(self.heads.items())
        group = {run.seed: run}
        for name, commit in known:
            other = Run(name, commit)
            if commit == run.commit or not all(_has(commit, path) for path in (PARAMS, LOCK, SUMMARY)):
                continue
            with suppress(BadInput):
                if other.seed not in group and not differing(run, other) and run.code(stages) == other.code(stages):
                    _ = other.summary  # it is compared later, so it must be readable
                    group[other.seed] = other
        return [group[seed] for seed in sorted(group)]


def differing(a: Run, b: Run) -> list[str]:
    """Return the params in which two runs differ, apart from the seed. A param that is not there counts as null."""
    return [name for name in {**a.knobs, **b.knobs} if a.knobs.get(name, "null") != b.knobs.get(name, "null")]


def cached(md5: str | None, cache: Path) -> Any:
    """Read a JSON file out of DVC's cache; None where it is not there."""
    path = cache / "files" / "md5" / md5[:2] / md5[2:] if md5 else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None


def cache_folder() -> Path | None:
    """Return the folder of DVC's cache; None where DVC does not say."""
    done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip()) if done.returncode == 0 else None


def _has(commit: str, path: str) -> bool:
    """Say whether a commit holds a file."""
    return git("cat-file", "-e", f"{commit}:./{path}") is not None
