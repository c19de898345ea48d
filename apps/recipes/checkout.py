"""Ask git about the checkout that an experiment is made in: params.yaml as committed, and the names in use."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from apps.git import git, utf8
from strata.run.door import BadInput
from strata.run.params import parse_yaml

PARAMS = Path("params.yaml")
EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/")  # refs/exps/<commit, cut in two>/<its name>
BACK = "`git checkout HEAD -- params.yaml`"


def check() -> None:
    """Refuse a folder in which DVC cannot make an experiment, and say what to do."""
    if not git("rev-parse", "--git-dir"):
        raise BadInput("this folder is in no git repository, which DVC needs for an experiment; clone Strata with git")
    if not git("rev-parse", "--verify", "-q", "HEAD"):
        raise BadInput("nothing is committed here yet, and an experiment needs a commit; `git add -A && git commit`")
    if unmerged := git("diff", "--name-only", "--diff-filter=U"):
        raise BadInput(f"git is in the middle of a merge ({unmerged.split()[0]}); end it first, or `git merge --abort`")

    if twice := [path for path in _changed_twice() if path != str(PARAMS)]:
        raise BadInput(
            f"{twice[0]} is staged in git and has changed since, and of such files DVC makes no experiment; stage it "
            f"again (`git add {twice[0]}`), or not at all (`git reset -q -- {twice[0]}`)"
        )

    missing = [
        f'git config --global user.{name} "{example}"'
        for name, example in (("name", "Your Name"), ("email", "you@example.org"))
        if not git("config", f"user.{name}") and not _by_environment(name)
    ]
    if missing:
        raise BadInput(f"git does not know who you are, and an experiment needs that: {' && '.join(missing)}")


def _changed_twice() -> list[str]:
    """List the files that are staged and have changed again since: commit, index and folder hold three versions."""
    # Lines `XY path`: X is the state of the index, Y that of the folder.
    lines = (git("status", "--porcelain", "--untracked-files=no") or "").splitlines()
    return [line[3:] for line in lines if line[0] in "MARC" and line[1] in "MD"]


def _by_environment(name: str) -> bool:
    """Say whether the environment sets this ``name`` for both whom git asks for: the author and the committer."""
    return all(os.environ.get(f"GIT_{who}_{name.upper()}") for who in ("AUTHOR", "COMMITTER"))


def base() -> str:
    """Return the text of params.yaml that a recipe goes over: that of the last commit.

    If the file has the same values, its own text is returned, which may have other comments. Raises BadInput if the
    file has values that are in no commit and no experiment, because they would be lost.
    """
    committed = git("show", f"HEAD:./{PARAMS}")
    text = _of_the_file() if PARAMS.is_file() else ""
    if committed is None:
        raise BadInput(f"{PARAMS} is in no commit yet; `git add {PARAMS} && git commit`")
    if text and _values(text) == _values(committed):
        return text
    if text and _values(text) not in [_values(experiment) for experiment in _of_experiments()]:
        raise BadInput(
            f"{PARAMS} has changes that are in no commit and no experiment, and a recipe goes over what is committed: "
            f"commit them, say them again as -S KEY=VALUE, or put the file back ({BACK})"
        )
    return utf8(committed, f"{PARAMS} of the last commit")


def committed() -> str:
    """Return the text of params.yaml in the last commit; if there is none, that of the file. Raises BadInput."""
    text = git("show", f"HEAD:./{PARAMS}")
    return _of_the_file() if text is None else utf8(text, f"{PARAMS} of the last commit")


def _of_the_file() -> str:
    """Read the file params.yaml. Raises BadInput where it is not UTF-8."""
    return utf8(PARAMS.read_text(encoding="utf-8", errors="surrogateescape"), str(PARAMS))


def _values(text: str) -> object:
    """Parse a text of params.yaml; None if it is no YAML."""
    try:
        return parse_yaml(text, PARAMS)
    except BadInput:
        return None


def _of_experiments() -> Iterator[str]:
    """Yield the text of params.yaml in each experiment. References of DVC that are of other kinds are passed over."""
    lines = (git("for-each-ref", "refs/exps", "--format=%(refname) %(objectname)") or "").splitlines()
    for commit in {line.split()[1] for line in lines if EXPERIMENT.match(line)}:
        if text := git("show", f"{commit}:./{PARAMS}"):
            yield text


def free_name(name: str) -> str:
    """Return ``name``, with a number behind it if an experiment of this commit, or a queued one, has that name."""
    head = (git("rev-parse", "HEAD") or "").strip()
    taken = {
        line.rpartition("/")[2]
        for line in (git("for-each-ref", f"refs/exps/{head[:2]}/{head[2:]}", "--format=%(refname)") or "").split()
    }
    queued = git("reflog", "show", "refs/exps/celery/stash", "--format=%gs") or ""
    taken |= {line.rpartition(":")[2] for line in queued.splitlines()}
    taken |= {name.rpartition("-")[0] for name in taken}  # a sweep calls its experiments sweep-1, sweep-2 …

    number = 1
    while (candidate := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return candidate


def unstage() -> None:
    """Take params.yaml out of git's index, where DVC puts it. The file itself stays as it is."""
    git("reset", "-q", "--", str(PARAMS))
