"""Serve: a tuned model put to use."""
