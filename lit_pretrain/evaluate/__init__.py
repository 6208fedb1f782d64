"""Evaluate: tasks through lm-evaluation-harness, and what a score is worth."""
