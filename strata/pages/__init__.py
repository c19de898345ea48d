"""How numbers and words are shown: pictures whose bytes repeat, and text that is safe on a page."""
