"""In: a layer's activations, their texts with labels, its SAE. Out: what others in the field measure of an SAE, beside
chance and beside the activations themselves, as `reports/evaluate/<L>.json`."""
