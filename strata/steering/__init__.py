"""Room steer_eval: a language model, a layer's SAE and some of its latents in; what steering with each does to the
model's predictions and to what it writes, what that costs, and whether a baseline does as well, out."""
