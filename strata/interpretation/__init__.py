"""In: a layer's activations, the tokens and documents they stand on, its SAE, the language model. Out: what each latent
fires on: sparse codes by latent, statistics, examples, enrichment, logit lens, explanations with scores."""
