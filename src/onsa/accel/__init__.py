"""Accel: speed passes that never change a result."""
