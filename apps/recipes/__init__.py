"""In: a recipe, which says how a run differs from params.yaml. Out: an experiment of DVC, checked before it runs."""
