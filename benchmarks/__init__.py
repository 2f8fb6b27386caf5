"""Benchmarks: correctness against references, and speed."""
