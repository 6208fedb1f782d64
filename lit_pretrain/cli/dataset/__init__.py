"""Datasets: what `inspect data` prints and draws."""
