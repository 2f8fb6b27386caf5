"""Optim: how weights move."""
