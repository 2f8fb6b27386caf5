"""Sessions: where steps run."""
