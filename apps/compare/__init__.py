"""In: two groups of SAEs, as folders, or as finished experiments of which `git` knows the numbers. Out: whether A is
better than B, metric by metric, as a page, a CSV and a short table."""
