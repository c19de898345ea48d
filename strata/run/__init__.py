"""What makes a run exact and killable: files written whole, work resumed, params read, bad input refused."""
