"""Decontamination: no document of the training data holds what a model will be examined on."""
