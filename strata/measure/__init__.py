"""What an SAE is worth: error, sparsity, cross-entropy, and the controls that it must beat."""
