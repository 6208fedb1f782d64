"""Checkpoint: finding, checking, reading and putting together what a run saved."""
