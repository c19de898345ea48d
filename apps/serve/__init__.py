"""In: an SAE's folder, the model whose activations it reads, and what interpret and explain wrote. Out: an HTTP server
that says which latents are active on a text, or on vectors, and how strongly."""
