"""App: the command line."""
