"""The training of an SAE: parameters, loss, optimiser, and the one loop that fits them."""
