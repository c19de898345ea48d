"""In: one layer's activations, the knobs of train and which of them to search. Out: `reports/tune/`, every trial and
the best knobs, from which train takes those that `train.from_tune` names."""
