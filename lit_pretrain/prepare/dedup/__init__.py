"""Deduplication: of documents that say the same, the first one stays."""
