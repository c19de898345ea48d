"""Sparse products: which entries of the codes are kept, and what is computed from them, on CPU and CUDA."""
