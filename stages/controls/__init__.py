"""In: a layer's activations and SAE. Out: twins of the SAE that a part is held at random in, judged beside it."""
