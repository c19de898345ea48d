"""Where a stage computes: the device and its threads, and several processes of one stage."""
