"""Filters: which documents are kept, and why the others are not."""
