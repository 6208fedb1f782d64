"""Parallel: how a network is laid over the devices of a run."""
