"""Engines: what runs the tasks of the preparation: processes of this machine, a Ray cluster, a
Slurm cluster.
"""
