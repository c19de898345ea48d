"""Rows of numbers and words in files and databases: NumPy arrays, Parquet, SQLite and PostgreSQL."""
