"""In: what interpret and explain wrote about one layer. Out: one latent's card as text, for a terminal."""
