"""Data modules: prepared text and post-training rows, in an order that the step decides."""

from importlib import import_module
from typing import Any

_CLASSES = {
    "BaseData": "data_module",
    "TextData": "text.text_data",
    "ChatData": "chat.chat_data",
    "PreferenceData": "chat.preference_data",
    "KTOData": "chat.preference_data",
    "StepwiseData": "chat.stepwise_data",
    "PromptData": "chat.prompt_data",
    "RowSource": "chat.row_source",
    "Task": "chat.row_source",
}
__all__ = list(_CLASSES)


def __getattr__(name: str) -> Any:
    """Import a class that configs name at its first use: most of this package needs no torch."""
    if name in _CLASSES:
        return getattr(import_module(f"{__name__}.{_CLASSES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
