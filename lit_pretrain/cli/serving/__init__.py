"""Serving: a run behind OpenAI's interface, over HTTP."""
