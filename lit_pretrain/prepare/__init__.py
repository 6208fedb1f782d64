"""Preparation: raw text in, a finished directory of LitData shards with its manifest out."""
