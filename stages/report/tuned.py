"""Show what tune searched: its best knobs beside those of params.yaml, and its pictures."""

from pathlib import Path
from typing import Any, NamedTuple

from strata.tuning.read import Trials, numbers

CAPTIONS = {
    "convergence": "The best held-out score after so many trials, and every trial's own.",
    "dependence": "What the score would be along each knob, averaged over the others, as the search's last model has "
    "it; dots are trials, the dashed line is the best.",
}


class Searched(NamedTuple):
    """A finished search. ``result``: its numbers, as in the summary. ``taken``: the names of the knobs that train takes
    from it. ``pictures``: name -> PNG."""

    trials: Trials
    result: dict[str, Any]
    taken: list[str]
    pictures: dict[str, bytes]

    @property
    def captions(self) -> dict[str, str]:
        """Picture -> the sentence under it."""
        return {name: CAPTIONS[name] for name in self.pictures}


def searched_in(folder: Path, trials: Trials) -> Searched:
    """Gather what tune left in ``folder``, whose trials are ``trials``."""
    files = {name: folder / f"{name}.png" for name in CAPTIONS}
    pictures = {name: path.read_bytes() for name, path in files.items() if path.exists()}
    return Searched(trials, numbers(trials), trials["from_tune"], pictures)
