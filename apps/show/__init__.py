"""In: what interpret wrote of one layer. Out: one latent's card as text, for a terminal."""
