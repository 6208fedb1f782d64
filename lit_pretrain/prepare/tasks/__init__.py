"""Tasks: what an engine runs for each part of the input."""
