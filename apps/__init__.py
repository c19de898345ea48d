"""What opens finished artifacts; no stage depends on it."""
