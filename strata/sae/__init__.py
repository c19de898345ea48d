"""The sparse autoencoder: codes and their kernels, sparsity rules, the one `fit` loop, quality, files.

In: rows of activations, (row, width). Out: an :class:`strata.sae.sae.SAE` that acts on raw activations.
"""
