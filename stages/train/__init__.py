"""In: one layer's activations, the tokens, the language model. Out: `data/sae/<L>/`, an SAE in SAELens's layout, and
`reports/train/<L>.json`, what was measured of it and of three controls on held-out text; `read.py` reads that."""
