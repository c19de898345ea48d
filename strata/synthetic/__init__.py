"""Rows whose true features are known, and scores that say how much of them an SAE recovers (SynthSAEBench)."""
