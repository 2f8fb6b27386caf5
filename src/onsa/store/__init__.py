"""Runs, their metrics, artifacts and lineage, and the folders in which Onsa keeps things. Imports no torch."""
