"""Callbacks: what happens around training, one job each."""
