"""In: an SAE as some tool keeps it, in a folder, a file or on the hub. Out: the same SAE as another tool keeps it."""
