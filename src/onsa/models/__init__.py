"""Models: load, lay out, generate; the catalogue of bases."""
