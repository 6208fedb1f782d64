"""Data: prepared text as rows of tokens, in an order that is a function of the step; and rows of post-training, rendered."""

from importlib import import_module
from typing import Any

_CLASSES = {
    "TextData": "datamodule", "ChatData": "chat", "PreferenceData": "preference", "KTOData": "kto", "PromptData": "prompts",
    "RowSource": "row_source", "Task": "tasks",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The classes that configs name, imported when asked for: most of this package needs no torch."""
    if name in _CLASSES:
        return getattr(import_module(f"{__name__}.{_CLASSES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
