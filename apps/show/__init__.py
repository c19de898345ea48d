"""In: what interpret wrote about one layer. Out: one latent's card as text, for a terminal."""
