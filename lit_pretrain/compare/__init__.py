"""Runs beside each other: equal budgets, the same held-out documents in pairs, and intervals."""
