"""Give latents names, and carry names over to another SAE."""
