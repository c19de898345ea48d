"""Rows of activations, in shards on disk or in memory, and shuffled batches of them."""
