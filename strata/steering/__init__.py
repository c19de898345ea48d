"""In: a language model, a layer's SAE and some of its latents. Out: what steering with each latent does to the model's
predictions and to the texts that it writes, what that costs, and whether a baseline does as well."""
