"""Engine: the loop, sessions, checkpoints."""
