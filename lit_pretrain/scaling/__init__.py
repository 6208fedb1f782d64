"""Scaling: arithmetic over shapes and devices, without torch."""
