"""Tokenizer: text to ids and back."""
