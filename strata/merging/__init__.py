"""In: one layer's activations, their codes, its SAE and its clusters. Out: `data/merged/<L>/`, an SAE with fewer
latents, and `reports/merge/<L>.json`, how good it is beside what it came from, and beside dropping latents instead."""
