"""Stage train: from one layer's activations, the tokens and the language model to an SAE.

It writes `data/sae/<L>/`, the SAE in SAELens's layout, and `reports/train/<L>.json`, how the SAE and three controls do
on held-out text.
"""
