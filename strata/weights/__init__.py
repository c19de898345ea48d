"""A language model's or sentence model's files, brought in and pinned."""
