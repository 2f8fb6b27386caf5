"""Texts: what is to be known of them on the way, before their end is there."""

from __future__ import annotations


def begun(text: str, other: str) -> int:
    """How many letters at the end of a text are the beginning of another, and not the whole of it."""
    return next((size for size in range(min(len(other) - 1, len(text)), 0, -1) if text.endswith(other[:size])), 0)
