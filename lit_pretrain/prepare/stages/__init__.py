"""Stages of `prepare`: what the engine runs for each part of the input, and what drives it."""
