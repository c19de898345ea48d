"""The front door: each thing that Strata does, as one call on values in memory."""
