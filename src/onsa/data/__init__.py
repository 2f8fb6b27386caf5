"""Rows: reading files, looking at them, splitting them, and judging their quality. Imports no torch."""
