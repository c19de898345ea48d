"""SAEs of other tools in and out."""
