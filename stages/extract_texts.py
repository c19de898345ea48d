"""Stage extract_texts: as extract, on the other text that interpret looks at."""

from stages.extract import main

__all__ = ["main"]
