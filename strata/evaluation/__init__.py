"""In: a layer's activations, their text with its labels, its SAE. Out: what peers measure of an SAE, beside chance and
beside the activations themselves, as `reports/evaluate/<L>.json`."""
