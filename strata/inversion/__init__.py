"""In: one layer's SAE, its latents and clusters, and the language model. Out: `data/inverted/<L>/`, prompts that
maximise a latent, measured again on their own text, and `reports/invert/<L>.json`, how they compare."""
