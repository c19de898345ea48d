"""Measurements that are run by hand, `python -m benchmarks.NAME`; each prints one JSON object."""
