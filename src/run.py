"""A recipe as an experiment of DVC: `python -m src.run recipes/sentences.yaml -S train.k=64`."""

from pathlib import Path

from apps.recipes import checkout, experiment, recipe
from apps.recipes.check import asked
from apps.recipes.layers import depth
from stages.select.whole import known
from strata.run.door import BadUsage, run
from strata.run.params import parse_yaml


def main(*words: str) -> None:
    """WORDS: a recipe, which is a YAML file with those keys of params.yaml that differ; then -S KEY=VALUE, which goes
    over it, and what else `dvc exp run` takes: -n NAME, --queue, --temp, the name of a stage. All is checked before
    anything runs. `layers` may be all, or every 3. `make run RECIPE=recipes/sentences.yaml` is the same.

    Example: python -m src.run recipes/sentences.yaml -S train.k=64
    """
    named = [word for word in words if recipe.is_recipe(word)]
    if len(named) > 1:
        raise BadUsage(f"{named[1]} is one recipe too many; a run has one")
    if not words:
        raise BadUsage(f"a recipe is missing: {', '.join(recipe.there())}")
    overlay = recipe.read(Path(named[0])) if named else recipe.NONE
    line = experiment.parsed(word for word in words if word not in named)

    checkout.check()
    text = checkout.base()
    checked = asked(known(parse_yaml(text, checkout.PARAMS)), overlay, line.changes, depth)
    name = line.name or (checkout.free_name(overlay.name) if named else None)
    experiment.run(checked, line, name, text)


if __name__ == "__main__":
    run(main, options=True)
