"""Sparse products on CPU and CUDA: choose the entries of the codes, and compute with these entries alone."""
