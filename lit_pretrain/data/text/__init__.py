"""Text data: prepared text as batches, in an order that is a pure function of the step."""
