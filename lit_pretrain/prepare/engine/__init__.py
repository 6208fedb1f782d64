"""Engines run the tasks of the preparation: processes of this machine, Ray, or Slurm."""
