"""Adaptations: which parameters train."""
