"""Do the same latents come again when the SAE is trained with other seeds? And a dictionary of those that do."""
