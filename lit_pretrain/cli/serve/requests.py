"""Requests as OpenAI's clients send them, and refusals in the shape that these clients expect."""

from typing import Any, Literal, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lit_pretrain.chat.messages import Message, joined_text
from lit_pretrain.generate.conversation import ReplySampling


class Refusal(Exception):
    """A request that gets no answer.

    Args:
        status: Of HTTP.
        message: What is wrong and what to do.
        param: The field that is wrong.
        code: One word for programs.
    """

    def __init__(
        self, status: int, message: str, *, param: Optional[str] = None, code: Optional[str] = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """As it is sent."""
        kind = {401: "authentication_error", 404: "not_found_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


def of_validation(errors: list[Any]) -> Refusal:
    """The first thing wrong with a body, from pydantic's list."""
    # Of a field that may be of several kinds, what is wrong deepest within it says most.
    first = max(errors, key=lambda error: len(error["loc"]))
    place = [str(part) for part in first["loc"] if part != "body"]
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first.get('ctx', {}).get('error', message)}")
    if kind == "extra_forbidden":
        return Refusal(
            400, f"unknown field {place[-1]!r}", param=place[-1], code="unknown_parameter"
        )
    if kind == "missing":
        return Refusal(
            400,
            f"the field {'.'.join(place) or 'body'} is missing",
            param=place[-1] if place else None,
        )
    if kind == "value_error":
        return Refusal(400, message, param=message.split()[0], code="unsupported_parameter")
    return Refusal(
        400,
        f"{place[0] if place else 'body'}: {message}",
        param=place[0] if place else None,
        code="invalid_value",
    )


NOT_HERE: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None,),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "web_search_options": (None,),
}
"""What OpenAI's interface has and this server has not: the values that ask for nothing, which
are let pass.
"""
NO_MATTER = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)
"""Fields that change no answer here."""


class StreamOptions(BaseModel):
    """How a stream is sent."""

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(BaseModel):
    """What both kinds of request share."""

    model_config = ConfigDict(extra="forbid")

    model: str
    stream: Optional[bool] = False
    stream_options: Optional[StreamOptions] = None
    max_tokens: Optional[int] = Field(None, ge=1)
    temperature: Optional[float] = Field(1.0, ge=0, le=2)
    top_p: Optional[float] = Field(1.0, gt=0, le=1)
    n: Optional[int] = Field(1, ge=1, le=128)
    seed: Optional[int] = None
    stop: Union[str, list[str], None] = None
    top_k: Optional[int] = Field(None, ge=1)
    """Not OpenAI's: keep the k likeliest tokens."""
    min_p: Optional[float] = Field(None, ge=0, le=1)
    """Not OpenAI's: keep the tokens at least this fraction as likely as the likeliest."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_here(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, neutral in NOT_HERE.items():
            if name in values and values[name] not in neutral:
                raise ValueError(f"{name} is not supported by this server; leave it out")
        return {
            name: value
            for name, value in values.items()
            if name not in NOT_HERE and name not in NO_MATTER
        }

    def sampling(self, *, max_new_tokens: int, seed: int) -> ReplySampling:
        """The settings of the engine; the given seed where the client wants any."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return ReplySampling(
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=seed if self.seed is None else self.seed,
            stop=tuple(s for s in stop if s),
        )


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Union[str, list[TextPart], None] = None
    name: Optional[str] = None

    def plain(self) -> Message:
        """As templates take it."""
        content = (
            self.content
            if isinstance(self.content, str)
            else joined_text([part.text for part in self.content or []])
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(CompletionRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Optional[int] = Field(None, ge=1)
    """The newer name of max_tokens."""


class TextRequest(CompletionRequest):
    """POST /v1/completions."""

    prompt: Union[str, list[int], list[str], list[list[int]]]
    """Texts begin a document, with the tokenizer's beginning-of-text token before them; token
    ids are taken as they are.
    """
