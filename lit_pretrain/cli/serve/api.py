"""Api: OpenAI's routes over a writer."""

import asyncio
import json
import secrets
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from lit_pretrain import __version__
from lit_pretrain.chat.messages import BadRow, Message, check_messages
from lit_pretrain.cli.serve.requests import (
    ChatRequest,
    CompletionRequest,
    Gate,
    Refusal,
    TextRequest,
    of_validation,
)
from lit_pretrain.cli.serve.writer import Stopping, Usage, Writer
from lit_pretrain.errors import UserError
from lit_pretrain.generate.conversation import ReplySampling, encode_prompt
from lit_pretrain.plain_data import load_json

Encoded = TypeVar("Encoded")
TEXT_TOKENS = 16
"""OpenAI's default of max_tokens in completions."""


class ModelCard(TypedDict):
    """A model, as /v1/models lists it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class PayloadHead(TypedDict):
    """What is the same in a whole response and in every chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str


class ChatAnswer(TypedDict, total=False):
    """A reply to a chat: whole, or in a stream the piece that is new."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(TypedDict, total=False):
    """One of the replies of a response."""

    index: int
    logprobs: None
    finish_reason: str | None
    message: ChatAnswer
    """Of a chat."""
    delta: ChatAnswer
    """Of a chat that is streamed."""
    text: str
    """Of a completion."""


class UsageRecord(TypedDict):
    """What a request took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int
    replies: int
    """Prompts times n."""
    tokens: int
    """Replies times the tokens of each."""


class Api:
    """The handlers.

    Args:
        writer: Writes the replies.
        name: What the model is called.
        created: When its weights were written, seconds since 1970.
        limits: What one request may ask for.
    """

    def __init__(self, writer: Writer, *, name: str, created: int, limits: Limits) -> None:
        self.writer = writer
        self.name = name
        self.created = created
        self.limits = limits
        self._encoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoding")

    async def health(self) -> Response:
        """GET /health, without a key: 200 while requests are taken, 503 once the server stops."""
        stopping = self.writer.stopping()
        return JSONResponse(
            {"status": "stopping" if stopping else "ok"}, status_code=503 if stopping else 200
        )

    async def models(self) -> dict[str, Any]:
        """GET /v1/models."""
        return {"object": "list", "data": [self._card()]}

    async def model(self, name: str) -> dict[str, Any]:
        """GET /v1/models/NAME."""
        self._check_model(name)
        return {**self._card()}

    async def chat(self, body: ChatRequest, request: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        self._check_model(body.model)
        if self.writer.renderer is None:
            raise Refusal(
                400, f"this model takes no chats: {self.writer.no_chat}", code="no_chat_template"
            )
        messages = [message.plain() for message in body.messages]
        prompt = await self._off_loop(self._rendered, messages)
        if any("name" in message for message in messages):
            nameless: list[Message] = [
                {"role": message["role"], "content": message["content"]} for message in messages
            ]
            if await self._off_loop(self._rendered, nameless) == prompt:
                raise Refusal(
                    400,
                    "name is not read by this model's chat template; leave it out",
                    param="name",
                    code="unsupported_parameter",
                )
        asked = (
            body.max_completion_tokens
            if body.max_completion_tokens is not None
            else body.max_tokens
        )
        room = self._room(
            prompt,
            asked,
            min(self.writer.max_tokens, self.writer.context - len(prompt)),
            "messages",
        )
        return await self._answer(ChatPayload(self.name), [prompt], body, room, request)

    async def complete(self, body: TextRequest, request: HttpRequest) -> Response:
        """POST /v1/completions."""
        self._check_model(body.model)
        prompt = body.prompt
        several = isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int))
        given: list[Any] = prompt if isinstance(prompt, list) and several else [prompt]
        self._check_replies(len(given), body)
        prompts = await self._off_loop(self._encoded, given)
        if not all(prompts) or not prompts:
            raise Refusal(
                400,
                "prompt is empty: give a text, which may be empty, or at least one token id",
                param="prompt",
            )
        vocabulary = self.writer.net.config.vocab_size
        wrong = next(
            (token for ids in prompts for token in ids if not 0 <= token < vocabulary), None
        )
        if wrong is not None:
            raise Refusal(
                400,
                f"token id {wrong} is not in the vocabulary of {vocabulary} tokens",
                param="prompt",
            )
        longest = max(prompts, key=len)
        room = self._room(
            longest, body.max_tokens, min(TEXT_TOKENS, self.writer.context - len(longest)), "prompt"
        )
        return await self._answer(TextPayload(self.name), prompts, body, room, request)

    # ------------------------------------------------------------------

    def _card(self) -> ModelCard:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "lit_pretrain",
            "max_model_len": self.writer.context,
        }

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise Refusal(
                404,
                f"there is no model {name!r}; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    async def _off_loop(self, work: Callable[[Any], Encoded], given: Any) -> Encoded:
        """Encode on a thread of its own: a long text would hold all other requests up."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoding, work, given)

    def _encoded(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        tokenizer = self.writer.tokenizer
        return [encode_prompt(tokenizer, p) if isinstance(p, str) else p for p in prompts]

    def _check_replies(self, prompts: int, body: CompletionRequest) -> None:
        n = body.n or 1
        if prompts * n > self.limits.replies:
            raise Refusal(
                400,
                f"{prompts} prompts × n={n} are more than the {self.limits.replies} replies that"
                " this server writes for one request",
                param="n" if prompts == 1 else "prompt",
                code="too_many_replies",
            )

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        """Render a conversation to the tokens of a prompt."""
        assert self.writer.renderer is not None
        try:
            check_messages(messages)
            prompt: list[int] = self.writer.renderer.prompt(messages).tolist()
        except BadRow as bad:
            raise Refusal(400, str(bad), param="messages") from None
        return prompt

    def _room(self, prompt: list[int], asked: int | None, default: int, param: str) -> int:
        """Count the tokens that may be written after a prompt."""
        context = self.writer.context
        if len(prompt) + (asked or 1) > context:
            wanted = "" if asked is None else f" and max_tokens={asked} more were asked for"
            raise Refusal(
                400,
                f"the model reads {context} tokens, its reply included; {param} has"
                f" {len(prompt)}{wanted}: shorten it",
                param=param if len(prompt) >= context else "max_tokens",
                code="context_length_exceeded",
            )
        return asked or default

    async def _answer(
        self,
        answer: "Payload",
        prompts: list[list[int]],
        body: CompletionRequest,
        room: int,
        request: HttpRequest,
    ) -> Response:
        n = body.n or 1
        self._check_replies(len(prompts), body)
        if (wanted := len(prompts) * n * room) > self.limits.tokens:
            raise Refusal(
                400,
                f"{len(prompts)} prompts × n={n} × {room} tokens are {wanted:,}; this server writes"
                f" {self.limits.tokens:,} for one request: ask for a smaller max_tokens or n",
                param="max_tokens",
                code="too_many_tokens",
            )
        sampling = body.sampling(max_new_tokens=room, seed=secrets.randbelow(2**31))
        usage = Usage()
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._events(answer, prompts, n, sampling, usage, with_usage, request)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        began = time.perf_counter()
        texts, ends = [""] * len(prompts) * n, [""] * len(prompts) * n
        try:
            async for part in self.writer.write(prompts, n, sampling, usage):
                texts[part.number] += part.text
                ends[part.number] = part.finish or ""
                if await request.is_disconnected():
                    _log(request, 499, usage, began)
                    return Response(status_code=499)  # nobody reads it
        except (UserError, Stopping) as error:
            raise Refusal(503 if isinstance(error, Stopping) else 500, str(error)) from error
        _log(request, 200, usage, began)
        choices = [
            answer.choice(index, text, end)
            for index, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]
        return JSONResponse(
            {**answer.head(answer.kind), "choices": choices, "usage": _plain(usage)}
        )

    async def _events(
        self,
        answer: "Payload",
        prompts: list[list[int]],
        n: int,
        sampling: ReplySampling,
        usage: Usage,
        with_usage: bool,
        request: HttpRequest,
    ) -> AsyncIterator[str]:
        """Yield server-sent events: chunks of the replies, the usage if asked for, and the end."""
        began = time.perf_counter()
        head: Mapping[str, object] = {
            **answer.head(answer.chunk_kind),
            **({"usage": None} if with_usage else {}),
        }
        begun: set[int] = set()
        status = 499
        try:
            async for part in self.writer.write(prompts, n, sampling, usage):
                first = part.number not in begun
                begun.add(part.number)
                for delta in answer.deltas(part.number, part.text, part.finish, first=first):
                    yield _event({**head, "choices": [delta]})
            if with_usage:
                yield _event({**head, "choices": [], "usage": _plain(usage)})
            yield "data: [DONE]\n\n"
            status = 200
        except (UserError, Stopping) as error:  # the status has been sent: only an event can tell
            status = 503 if isinstance(error, Stopping) else 500
            yield _event(Refusal(status, str(error)).body())
        finally:
            _log(request, status, usage, began)


class Payload:
    """One response: its id, and the shape of what it holds."""

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, model: str) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model

    def head(self, kind: str) -> PayloadHead:
        """Write what is the same in every chunk."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"lit_pretrain-{__version__}",
        }

    def choice(self, index: int, text: str, finish: str) -> Choice:
        """Write a whole reply."""
        raise NotImplementedError

    def deltas(self, index: int, text: str, finish: str | None, *, first: bool) -> list[Choice]:
        """Write a piece of a reply."""
        raise NotImplementedError


class ChatPayload(Payload):
    """To a chat."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, text: str, finish: str) -> Choice:
        """Write a whole reply."""
        message: ChatAnswer = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def deltas(self, index: int, text: str, finish: str | None, *, first: bool) -> list[Choice]:
        """Write the role first, by itself, and the reason of the end last, by itself."""
        pieces: list[tuple[ChatAnswer, str | None]] = []
        if first:
            pieces.append(({"role": "assistant", "content": ""}, None))
        if text:
            pieces.append(({"content": text}, None))
        if finish:
            pieces.append(({}, finish))
        return [
            {"index": index, "logprobs": None, "delta": delta, "finish_reason": reason}
            for delta, reason in pieces
        ]


class TextPayload(Payload):
    """To a completion."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def choice(self, index: int, text: str, finish: str) -> Choice:
        """Write a whole reply."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

    def deltas(self, index: int, text: str, finish: str | None, *, first: bool) -> list[Choice]:
        """Write a piece, or the end."""
        return [{"index": index, "text": text, "logprobs": None, "finish_reason": finish}]


class StrictRequest(HttpRequest):
    """A request whose JSON gives no key twice, and holds no text that cannot be encoded."""

    async def json(self) -> Any:
        """Return the body as a value."""
        body = await self.body()
        try:
            value = load_json(body.decode("utf-8-sig"))
            json.dumps(value, ensure_ascii=False).encode()
        except json.JSONDecodeError:
            raise
        except UnicodeEncodeError:
            raise json.JSONDecodeError("a text holds half of a surrogate pair", "", 0) from None
        except ValueError as error:  # not UTF-8, nested too deeply, or with a key twice
            raise json.JSONDecodeError(str(error), "", 0) from None
        return value


class StrictRoute(APIRoute):
    """A route whose requests are strict."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        """Return the handler of requests."""
        handle = super().get_route_handler()

        async def strict(request: HttpRequest) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


def make_app(
    writer: Writer,
    *,
    name: str,
    created: int,
    limits: Limits,
    api_key: str | None,
    hosts: Collection[str],
) -> FastAPI:
    """Build the application.

    Args:
        writer: Writes the replies.
        name: What the model is called.
        created: When its weights were written, seconds since 1970.
        limits: What one request may ask for.
        api_key: What clients must show; None asks for nothing.
        hosts: Names that requests may be for; empty for any.
    """
    api = Api(writer, name=name, created=created, limits=limits)
    app = FastAPI(title="lit_pretrain", version=__version__)
    app.router.route_class = StrictRoute
    app.add_api_route("/health", api.health, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models", api.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", api.model, methods=["GET"])
    app.add_api_route(
        "/v1/chat/completions",
        api.chat,
        methods=["POST"],
        response_model=None,
    )
    app.add_api_route("/v1/completions", api.complete, methods=["POST"], response_model=None)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_middleware(Gate, api_key=api_key, hosts=hosts, max_body=limits.body_bytes)
    return app


async def _refused(request: HttpRequest, error: Any) -> Response:
    _log(request, error.status, Usage(), time.perf_counter())
    return JSONResponse(error.body(), status_code=error.status)


async def _invalid(request: HttpRequest, error: Any) -> Response:
    return await _refused(request, of_validation(error.errors()))


async def _unknown(request: HttpRequest, error: Any) -> Response:
    what = (
        f"{request.method} {request.url.path} is not here: /v1/models, /v1/chat/completions,"
        " /v1/completions and /health are"
    )
    return await _refused(
        request,
        Refusal(error.status_code, what if error.status_code in (404, 405) else str(error.detail)),
    )


def _plain(usage: Usage) -> UsageRecord:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _event(value: Mapping[str, object]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _log(request: HttpRequest, status: int, usage: Usage, began: float) -> None:
    took = (
        f", {usage.prompt} + {usage.completion} tokens in {time.perf_counter() - began:.2f} s"
        if usage.prompt
        else ""
    )
    print(f"{request.method} {request.url.path} {status}{took}", file=sys.stderr, flush=True)
