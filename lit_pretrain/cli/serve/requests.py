"""Requests as OpenAI's clients send them: what is let in, and refusals in the shape they expect."""

import secrets
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage
from typing_extensions import Self

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
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """Return the body as it is sent."""
        kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}.get(
            self.status
        )
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


def of_validation(errors: list[Any]) -> Refusal:
    """Refuse a body for the first thing wrong with it, from pydantic's list."""
    # Of a field that may be of several kinds, what is wrong deepest within it says most.
    first = max(errors, key=lambda error: len(error["loc"]))
    # Beside names and places, pydantic gives the kinds of a field that may be of several.
    kinds = ("body", "str", "int")
    parts = [str(part) for part in first["loc"] if part not in kinds]
    place = [part for part in parts if part.isidentifier() or part.isdigit()]
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first.get('ctx', {}).get('error', message)}")
    if kind == "extra_forbidden":
        return Refusal(
            400, f"unknown field {'.'.join(place)!r}", param=place[-1], code="unknown_parameter"
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
        f"{'.'.join(place) or 'body'}: {message}",
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
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""What OpenAI's interface has and this server has not: the values that ask for nothing, which
are let pass.
"""
NOT_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
    "tool_call_id": (None,),
    "tool_calls": (None, []),
}
"""The same for messages; clients send answers back with all their fields."""
NO_MATTER = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "user",
)
"""Fields that ask for nothing here: who is asking, and how requests are told apart."""


def _without_what_is_not_here(values: Any, not_here: dict[str, tuple[Any, ...]]) -> Any:
    """Refuse fields that nothing here reads, and leave out those whose value asks for nothing."""
    if not isinstance(values, dict):
        return values
    for name, neutral in not_here.items():
        if name in values and not any(_same(values[name], value) for value in neutral):
            raise ValueError(f"{name} is not supported by this server; leave it out")
    return {name: value for name, value in values.items() if name not in not_here}


def _same(value: Any, neutral: Any) -> bool:
    """Compare as JSON does, where `0` is `0.0` but not `false`."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


class RequestPart(BaseModel):
    """What all parts of a request share: strictness.

    A field that is not read is refused, and so is a value that is only like one of the field's
    kind, such as `"1"` for a number.
    """

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(RequestPart):
    """How a stream is sent."""

    include_usage: bool = False

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_here(cls, values: Any) -> Any:
        return _without_what_is_not_here(values, {"include_obfuscation": (None, False)})


class CompletionRequest(RequestPart):
    """What both kinds of request share."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1, le=128)
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = Field(None, ge=1)
    """Not OpenAI's: keep the k likeliest tokens."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Not OpenAI's: keep the tokens at least this fraction as likely as the likeliest."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_here(cls, values: Any) -> Any:
        values = _without_what_is_not_here(values, NOT_HERE)
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name not in NO_MATTER}

    @model_validator(mode="after")
    def _refuse_what_would_be_lost(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams: give stream: true, or leave it out")
        if self.stop == "" or (isinstance(self.stop, list) and "" in self.stop):
            raise ValueError("stop holds an empty text, which would end every reply")
        return self

    def sampling(self, *, max_new_tokens: int, seed: int) -> ReplySampling:
        """Collect the settings of the engine; `seed` where the client gives none."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return ReplySampling(
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=seed if self.seed is None else self.seed,
            stop=tuple(stop),
        )


class TextPart(RequestPart):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(RequestPart):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    """Only some templates read it."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_here(cls, values: Any) -> Any:
        return _without_what_is_not_here(values, NOT_IN_MESSAGES)

    def plain(self) -> Message:
        """Return the message as templates take it."""
        content = (
            self.content
            if isinstance(self.content, str)
            else joined_text([part.text for part in self.content])
        )
        role = "system" if self.role == "developer" else self.role
        message: Message = {"role": role, "content": content}
        return message if self.name is None else {**message, "name": self.name}


class ChatRequest(CompletionRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of max_tokens."""

    @model_validator(mode="after")
    def _refuse_two_limits(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self


class TextRequest(CompletionRequest):
    """POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    """Texts begin a document, with the tokenizer's beginning-of-text token before them; token
    ids are taken as they are.
    """


OPEN = "/health"
"""The one path that asks for no key."""


class Gate:
    """Refuse requests for another host, without the key, or with too large a body.

    A page of another site in a browser on this machine can reach a server on 127.0.0.1 under a
    name of its own (DNS rebinding); the Host that the browser sends then gives it away.

    Args:
        app: Handles what is let in.
        api_key: What clients must show; None asks for nothing.
        hosts: Names that requests may be for, in lower case; empty for any.
        max_body: Most bytes of a body.
    """

    def __init__(
        self, app: ASGIApp, *, api_key: str | None, hosts: Collection[str], max_body: int
    ) -> None:
        self.app = app
        self.api_key = api_key
        self.hosts = hosts
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http":
            return  # there are no web sockets here; uvicorn then closes the connection
        request = Request(scope)
        refusal = self._refusal(request)
        if refusal is None:
            await self.app(scope, self._counted(receive), send)
            return
        # The rest of the body is not read.
        headers = {"Connection": "close"}
        if refusal.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        answer = JSONResponse(refusal.body(), status_code=refusal.status, headers=headers)
        await answer(scope, receive, send)

    def _refusal(self, request: Request) -> Refusal | None:
        host = _host_name(request.headers.get("host", ""))
        if self.hosts and host not in self.hosts:
            return Refusal(
                403,
                f"this server is not called {host!r}; if it is, name it: --hosts '[{host}]'",
                code="wrong_host",
            )
        if request.url.path != OPEN and self.api_key is not None:
            shown = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(shown.encode(), self.api_key.encode()):
                return Refusal(
                    401,
                    "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                )
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.max_body:
            return self._too_large()
        return None

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            f"the body is larger than {self.max_body:,} bytes, the limit of this server",
            code="body_too_large",
        )

    def _counted(self, receive: Receive) -> Receive:
        """Count a body that comes in pieces of unknown number."""
        count = 0

        async def counted() -> AsgiMessage:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.max_body:
                raise HTTPException(413, str(self._too_large()))
            return message

        return counted


def _host_name(header: str) -> str:
    """Return the name in a Host header, without the port, in lower case."""
    name = header.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0][1:]
    return name.rpartition(":")[0] if ":" in name else name
