"""Decontamination: no document of the training data holds an item of an evaluation set."""
