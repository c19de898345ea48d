"""The stages of dvc.yaml, a module or room each: what it reads, what it calls, what it writes."""
