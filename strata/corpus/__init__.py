"""The corpus: documents and vectors from files, databases and hubs, filtered, shuffled, split and written once.

In:  `fetch.corpus` of params.yaml: text sources, several of which are mixed.
Out: `data/corpus/`. `read.py` says what it holds and opens it, and also `data/lm/`, the model that fetch brings in.
"""
