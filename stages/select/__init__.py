"""In: params.yaml. Out: its values, checked as every later stage would check its part, and the layers of this run."""
