"""In: a layer's SAE and what its latents fire on. Out: families of latents with names, medoids and maps, how far they
can be trusted, and the selected latents that the next stages work on."""
