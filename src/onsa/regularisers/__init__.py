"""Regularisers: what holds a model back from learning its rows by heart. A recipe may name several."""
