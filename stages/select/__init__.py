"""In: params.yaml. Out: it, read whole and checked as every later stage would check its part."""
