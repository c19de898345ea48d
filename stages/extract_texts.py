"""Stage extract_texts: do what extract does, on the other text that interpret looks at."""

from stages.extract import main

__all__ = ["main"]
