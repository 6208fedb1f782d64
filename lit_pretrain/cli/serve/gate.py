"""Gate: what is checked of every request before its body is read."""

import secrets
from collections.abc import Collection
from typing import Optional

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_pretrain.cli.serve.requests import Refusal

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
        self, app: ASGIApp, *, api_key: Optional[str], hosts: Collection[str], max_body: int
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

    def _refusal(self, request: Request) -> Optional[Refusal]:
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

        async def counted() -> Message:
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
