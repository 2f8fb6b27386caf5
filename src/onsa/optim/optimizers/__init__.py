"""Optimizers, a file each."""
