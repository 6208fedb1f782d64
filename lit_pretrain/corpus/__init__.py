"""Corpus: a prepared dataset on disk, as `prepare` writes it and `data` reads it."""
