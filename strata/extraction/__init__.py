"""In: a language model and a corpus. Out: `data/activations/<L>/` for every layer, from one forward pass, and
`data/activations/tokens/`, the token and document of every row."""
