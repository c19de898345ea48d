"""In: the finished experiments that `dvc exp show` lists. Out: what each SAE pays for its sparsity, as points and
curves, and the front of those that no other one beats."""
