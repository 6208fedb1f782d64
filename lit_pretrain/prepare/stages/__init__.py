"""Stages of the preparation: each file holds the driver of a stage and the tasks that it runs."""
