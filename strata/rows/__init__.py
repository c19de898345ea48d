"""Rows of activations: in shards on disk or in memory, in shuffled batches."""
