"""Sparsity rules, one file a family."""
