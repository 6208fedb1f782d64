"""Scaling laws and plans: arithmetic over shapes and devices, without torch."""
