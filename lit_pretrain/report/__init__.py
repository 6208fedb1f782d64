"""Report: the run folder and what a person reads in it."""
