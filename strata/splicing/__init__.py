"""Measure what a language model predicts when a reconstruction takes the place of a layer's activations."""
