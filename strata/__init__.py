"""Sparse autoencoders: activations in, dictionaries of latents out."""
