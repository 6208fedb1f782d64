"""lit_pretrain: raw text to a base model, an assistant and a task model, in one framework."""

__version__ = "0.1.0"
