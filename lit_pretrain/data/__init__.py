"""Data: prepared text as rows of tokens, in an order that is a function of the step."""
