"""What an SAE is worth: error, sparsity, cross-entropy, controls and targets."""
